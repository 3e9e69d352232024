#!lua flags=allow-oom
-- Puts a snapshot, written under a temporary name, in the place of a partition, or answers where the partition stands.
--
-- KEYS  1: the partition's hash, 2: the temporary one
-- ARGV  the position at which the partition has to be, the snapshot's position, number of the snapshot's fields
--
-- A failover may have lost some of what was written under the temporary name: then the number is another one.
local stored = redis.call('HGET', KEYS[1], 'position') or '0'
if stored ~= ARGV[1] then
  return stored
end
if redis.call('HLEN', KEYS[2]) ~= tonumber(ARGV[3]) then
  return redis.error_reply('ERR restore: the temporary hash is not complete')
end
redis.call('PERSIST', KEYS[2])
redis.call('UNLINK', KEYS[1])
redis.call('RENAME', KEYS[2], KEYS[1])
return ARGV[2]
