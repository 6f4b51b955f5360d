#!lua flags=allow-oom
-- Tells all subscribers the number of the latest message.
-- KEYS[1] the epoch, KEYS[2] the number of messages. ARGV[1] the channel.
local epoch = string.sub(redis.call('GET', KEYS[1]) or '0000000000000000', 1, 16)
local number = string.format('%020.0f', redis.call('GET', KEYS[2]) or 0)
return redis.call('PUBLISH', ARGV[1], '1H' .. epoch .. number)
