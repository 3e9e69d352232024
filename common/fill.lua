#!lua flags=allow-oom
-- Adds fields to a hash under a temporary name, which vanishes by itself if nobody puts it in its place.
--
-- KEYS  1: the temporary hash
-- ARGV  milliseconds that it lives, then field and value of each; at most 1,000 (unpack ends at some 8,000 values)
redis.call('HSET', KEYS[1], unpack(ARGV, 2))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
