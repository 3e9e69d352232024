#!lua flags=allow-oom
-- The one write to a partition: moves its state and its position together, or answers where the position is.
--
-- KEYS  1: the partition's hash, then the reply lists
-- ARGV  start, end, milliseconds that replies live, number of fields to set, number of fields to delete,
--       field and value of each to set, each field to delete, one reply for each reply list
--
-- Everything is checked before the first write: an error in the middle would leave the writes before it.  No arithmetic
-- on values: Lua's numbers are doubles.  allow-oom: what the log has taken must be applied, and pruning frees memory;
-- it is new requests that are refused when memory is short.
local first, last, lives = ARGV[1], ARGV[2], ARGV[3]
local sets, deletes = tonumber(ARGV[4]), tonumber(ARGV[5])
if #ARGV ~= 5 + 2 * sets + deletes + #KEYS - 1 then
  return redis.error_reply('ERR apply: the numbers of fields, replies and arguments do not agree')
end

local stored = redis.call('HGET', KEYS[1], 'position') or '0'
if stored ~= first then
  return stored
end

local CHUNK = 1000 -- unpack ends at some 8,000 values
local at = 6
local sets_end = at + 2 * sets
while at < sets_end do
  local stop = math.min(at + 2 * CHUNK, sets_end)
  redis.call('HSET', KEYS[1], unpack(ARGV, at, stop - 1))
  at = stop
end
local deletes_end = at + deletes
while at < deletes_end do
  local stop = math.min(at + CHUNK, deletes_end)
  redis.call('HDEL', KEYS[1], unpack(ARGV, at, stop - 1))
  at = stop
end
redis.call('HSET', KEYS[1], 'position', last)
for list = 2, #KEYS do
  redis.call('RPUSH', KEYS[list], ARGV[at])
  redis.call('PEXPIRE', KEYS[list], lives)
  at = at + 1
end
return last
