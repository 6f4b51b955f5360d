-- ARGV: milliseconds and count of a sequence that is to lie below all that follow. Makes the journal where
-- there is none.
local ms, n, epoch = last()
local to_ms, to_n = tonumber(ARGV[1]), tonumber(ARGV[2])
if to_ms > ms or (to_ms == ms and to_n > n) then ms, n = to_ms, to_n end
redis.call('HSET', KEYS[2], 'epoch', epoch, 'ms', string.format('%.0f', ms),
    'n', string.format('%.0f', n))
return 1
