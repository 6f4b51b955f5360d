-- Goes on with this journal in the server process, and with the memory, that ARGV[1] names. Where it was
-- kept by another one it may lack its latest entries (a replica was promoted, an older file was read),
-- so a new life begins: what the old one gave out beyond its end here is lost.
local known = redis.call('HMGET', KEYS[2], 'epoch', 'server', 'ms', 'n')
if known[2] == ARGV[1] then return 0 end
if known[1] and known[2] then
    local time = redis.call('TIME')
    local epoch = math.max(time[1] * 1000000 + time[2], tonumber(known[1]) + 1)
    redis.call('HSET', KEYS[2], 'epoch', string.format('%.0f', epoch),
        'end:' .. known[1], known[3] .. '-' .. known[4])
end
redis.call('HSET', KEYS[2], 'server', ARGV[1])
return 1
