-- ARGV: milliseconds and count of a sequence that is to lie below all that follow.
local ms, n, epoch = last()
local to_ms, to_n = tonumber(ARGV[1]), tonumber(ARGV[2])
if to_ms > ms or (to_ms == ms and to_n > n) then
    redis.call('HSET', KEYS[2], 'epoch', epoch, 'ms', ARGV[1], 'n', ARGV[2])
end
return 1
