-- Goes on with this journal in the server process named by ARGV[1], with the memory named by ARGV[2].
-- Where it was kept by another one it may lack its latest entries (a replica was promoted, an older file
-- was read), so a new life begins, and what the old one gave out beyond its end here is lost. Nobody
-- appends to a process before this; but a process whose memory was replaced may have taken appends since,
-- so there nobody knows where the old life ended.
local known = redis.call('HMGET', KEYS[2], 'epoch', 'process', 'memory', 'ms', 'n')
if known[2] == ARGV[1] and known[3] == ARGV[2] then return 0 end
-- A write that needs no memory: behind it, those below are done also when that is full.
redis.call('HDEL', KEYS[2], '')
if known[1] and known[2] then
    local time = redis.call('TIME')
    local epoch = math.max(time[1] * 1000000 + time[2], tonumber(known[1]) + 1)
    redis.call('HSET', KEYS[2], 'epoch', string.format('%.0f', epoch))
    if known[2] ~= ARGV[1] then
        redis.call('HSET', KEYS[2], 'end:' .. known[1], known[4] .. '-' .. known[5])
    end
end
redis.call('HSET', KEYS[2], 'process', ARGV[1], 'memory', ARGV[2])
return 1
