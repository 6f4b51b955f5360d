#!lua flags=allow-oom
-- Begins a new epoch, in which no entry exists, and tells the other instances. The traces of writes
-- stay, so the memory is as whole as it was.
-- KEYS[1] the epoch, KEYS[2] the number of messages. ARGV[1] the new epoch with the run id;
-- ARGV[2] the channel, or nothing.
local there, born = redis.call('GET', KEYS[1]) or '', nil
if string.sub(there, 17, -21) == string.sub(ARGV[1], 17) then
  born = string.sub(there, -20)
else
  local time = redis.call('TIME')
  born = string.format('%020.0f', time[1] * 1000 + math.floor(time[2] / 1000))
end
redis.call('SET', KEYS[1], ARGV[1] .. born)
if ARGV[2] ~= '' then
  local number = string.format('%020.0f', redis.call('INCR', KEYS[2]))
  redis.call('PUBLISH', ARGV[2], '1C' .. string.sub(ARGV[1], 1, 16) .. number)
end
return 1
