-- ARGV: for each dead letter: sequence (padded), payload.
local ms, n, epoch = last()
local done, bytes, first = 0, 0, 0
for at = 1, #ARGV, 2 do
    if redis.call('HDEL', KEYS[3], ARGV[at]) == 1 then
        redis.call('ZREM', KEYS[4], ARGV[at])
        redis.call('ZADD', KEYS[5], 0, ARGV[at])
        ms, first, n = advance(ms, n, 1)
        redis.call('XADD', KEYS[1], id(ms, first), 'w', ARGV[at + 1])
        done, bytes = done + 1, bytes + #ARGV[at + 1]
    end
end
if done > 0 then
    redis.call('HSET', KEYS[2], 'epoch', epoch, 'ms', string.format('%.0f', ms),
        'n', string.format('%.0f', n))
    redis.call('HINCRBY', KEYS[2], 'writes', done)
    redis.call('HINCRBY', KEYS[2], 'bytes', bytes)
end
return done
