-- KEYS: stream, meta, dead (by sequence), order (of the dead), again (dead that are tried again).

-- The server's clock, in milliseconds: the only one that sequences and ages are made of.
local function now()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- A stream that is gone, evicted or removed, with what waited in it: a new life begins, without the end
-- of the old one, for nobody knows what of it was applied.
local function find_loss()
    local writes = tonumber(redis.call('HGET', KEYS[2], 'writes') or '0')
    if writes <= 0 or redis.call('XLEN', KEYS[1]) > 0 then return end
    local time = redis.call('TIME')
    local epoch = math.max(time[1] * 1000000 + time[2],
        tonumber(redis.call('HGET', KEYS[2], 'epoch') or '0') + 1)
    redis.call('HSET', KEYS[2], 'epoch', string.format('%.0f', epoch), 'writes', '0', 'bytes', '0')
end

local function progress()
    find_loss()
    local known = redis.call('HMGET', KEYS[2], 'epoch', 'ms', 'n', 'writes', 'bytes')
    local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
    local dead = redis.call('ZRANGE', KEYS[4], 0, 0)
    local again = redis.call('ZRANGE', KEYS[5], 0, 0)
    return {
        known[1] or '0', (known[2] or '0') .. '-' .. (known[3] or '0'),
        oldest[1] and oldest[1][1] or '', known[4] or '0', known[5] or '0',
        redis.call('ZCARD', KEYS[4]), dead[1] or '', again[1] or '', now(),
    }
end

-- Gives out `count` sequences after `ms-n`, of now where that is later; answers the first and last.
local function advance(ms, n, count)
    local time = now()
    if time > ms then ms, n = time, 0 else n = n + 1 end
    if n + count > 2097152 then ms, n = ms + 1, 0 end
    return ms, n, n + math.max(count, 1) - 1
end

local function id(ms, n)
    return string.format('%.0f-%.0f', ms, n)
end

-- The last sequence, and a name for this journal: when it was made. A new one begins in the next
-- millisecond, above whatever one that was lost just now gave out.
local function last()
    find_loss()
    local known = redis.call('HMGET', KEYS[2], 'ms', 'n', 'epoch')
    if known[3] then return tonumber(known[1]), tonumber(known[2]), known[3] end
    local time = redis.call('TIME')
    local epoch = string.format('%.0f', time[1] * 1000000 + time[2])
    return time[1] * 1000 + math.floor(time[2] / 1000) + 1, 0, epoch
end
