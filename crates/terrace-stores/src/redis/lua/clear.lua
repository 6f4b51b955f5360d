#!lua flags=allow-oom
-- Begins a new epoch, in which no entry exists, and tells the other instances.
-- KEYS[1] the epoch, KEYS[2] the number of messages. ARGV[1] the new epoch with the run id;
-- ARGV[2] the channel, or nothing.
redis.call('SET', KEYS[1], ARGV[1])
if ARGV[2] ~= '' then
  local number = string.format('%020.0f', redis.call('INCR', KEYS[2]))
  redis.call('PUBLISH', ARGV[2], '1C' .. string.sub(ARGV[1], 1, 16) .. number)
end
return 1
