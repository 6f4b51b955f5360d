-- ARGV: group, then for each entry: id, writes, bytes, its own first sequence or '', how many dead,
-- and for each of those: sequence (padded), letter.
local at, writes, bytes = 2, 0, 0
while at <= #ARGV do
    local entry, count, dead = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 4])
    redis.call('XACK', KEYS[1], ARGV[1], entry)
    -- Who settles second changes nothing.
    local first_time = redis.call('XDEL', KEYS[1], entry) == 1
    if first_time then
        writes, bytes = writes + count, bytes + tonumber(ARGV[at + 2])
        if ARGV[at + 3] ~= '' then redis.call('ZREM', KEYS[5], ARGV[at + 3]) end
    end
    for letter = at + 5, at + 4 + 2 * dead, 2 do
        if first_time then
            redis.call('HSET', KEYS[3], ARGV[letter], ARGV[letter + 1])
            redis.call('ZADD', KEYS[4], 0, ARGV[letter])
        end
    end
    at = at + 5 + 2 * dead
end
-- Of what is counted in `meta`, which may have been removed by hand.
for name, gone in pairs({writes = writes, bytes = bytes}) do
    local left = tonumber(redis.call('HGET', KEYS[2], name) or '0') - gone
    if gone > 0 then redis.call('HSET', KEYS[2], name, string.format('%.0f', math.max(left, 0))) end
end
return progress()
