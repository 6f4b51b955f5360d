#!lua flags=allow-oom
-- Proves that the server takes writes, answers its time in ms, and tells all subscribers the number
-- of the latest message.
-- KEYS[1] the epoch, KEYS[2] the number of messages, KEYS[3] what is written. ARGV[1] the channel,
-- or nothing; ARGV[2] the life of what is written, in ms.
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
if ARGV[1] ~= '' then
  local epoch = string.sub(redis.call('GET', KEYS[1]) or '0000000000000000', 1, 16)
  local number = string.format('%020.0f', redis.call('GET', KEYS[2]) or 0)
  redis.call('PUBLISH', ARGV[1], '1H' .. epoch .. number)
end
local time = redis.call('TIME')
return time[1] * 1000 + math.floor(time[2] / 1000)
