-- ARGV: sequences of dead letters (padded).
local gone = 0
for _, sequence in ipairs(ARGV) do
    gone = gone + redis.call('HDEL', KEYS[3], sequence)
    redis.call('ZREM', KEYS[4], sequence)
end
return gone
