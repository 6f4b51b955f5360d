#!lua flags=allow-oom
-- Proves that the server takes writes, and tells all subscribers the number of the latest message.
-- Answers the server's time in ms, the epoch and that number.
-- KEYS[1] the epoch, KEYS[2] the number of messages, KEYS[3] what is written. ARGV[1] the channel,
-- or nothing; ARGV[2] the life of what is written, in ms.
redis.call('SET', KEYS[3], '1', 'PX', ARGV[2])
local epoch = string.sub(redis.call('GET', KEYS[1]) or '0000000000000000', 1, 16)
local number = string.format('%020.0f', redis.call('GET', KEYS[2]) or 0)
if ARGV[1] ~= '' then redis.call('PUBLISH', ARGV[1], '1H' .. epoch .. number) end
local time = redis.call('TIME')
return { time[1] * 1000 + math.floor(time[2] / 1000), epoch, number }
