-- ARGV: most writes, most bytes, prefix of requests, how long those are kept (s), milliseconds and
-- count of the last sequence that the caller knows of, then for each entry: writes, payload, name of
-- its request or '', fingerprint.
local ms, n, epoch = last()
local previous = redis.call('HEXISTS', KEYS[2], 'epoch') == 1 and id(ms, n) or '0-0'
-- A server that lost its latest (a replica that was promoted, behind and with another clock) must not
-- give out again what rows carry.
local known_ms, known_n = tonumber(ARGV[5]), tonumber(ARGV[6])
if known_ms > ms or (known_ms == ms and known_n > n) then ms, n = known_ms, known_n end
local held = redis.call('HMGET', KEYS[2], 'writes', 'bytes')
local writes, bytes = tonumber(held[1] or '0'), tonumber(held[2] or '0')
local fresh, more_writes, more_bytes, answers = {}, 0, 0, {}
local here, repeats = {}, {}
for at = 7, #ARGV, 4 do
    local place = (at - 7) / 4 + 1
    local name, known = ARGV[at + 2], false
    if name ~= '' then known = redis.call('GET', ARGV[3] .. name) end
    if known then
        local same = string.sub(known, 1, 32) == ARGV[at + 3]
        answers[place] = same and {'repeated', string.sub(known, 33)} or {'reused', ''}
    elseif here[name] then
        -- The first of that name is in this very call.
        local same = ARGV[here[name] + 3] == ARGV[at + 3]
        answers[place] = {'reused', ''}
        if same then repeats[place] = (here[name] - 7) / 4 + 1 end
    else
        if name ~= '' then here[name] = at end
        fresh[#fresh + 1] = at
        more_writes = more_writes + tonumber(ARGV[at])
        if ARGV[at] ~= '0' then more_bytes = more_bytes + #ARGV[at + 1] end
    end
end
if writes + more_writes > tonumber(ARGV[1]) or bytes + more_bytes > tonumber(ARGV[2]) then
    return {'full'}
end
for _, at in ipairs(fresh) do
    local count, first = tonumber(ARGV[at]), 0
    ms, first, n = advance(ms, n, count)
    if count > 0 then redis.call('XADD', KEYS[1], id(ms, first), 'w', ARGV[at + 1]) end
    local name = ARGV[at + 2]
    if name ~= '' then
        redis.call('SET', ARGV[3] .. name, ARGV[at + 3] .. id(ms, first), 'EX', ARGV[4])
    end
    answers[(at - 7) / 4 + 1] = {'new', id(ms, first)}
end
for place, first in pairs(repeats) do answers[place] = {'repeated', answers[first][2]} end
redis.call('HSET', KEYS[2], 'epoch', epoch, 'ms', string.format('%.0f', ms),
    'n', string.format('%.0f', n), 'writes', string.format('%.0f', writes + more_writes),
    'bytes', string.format('%.0f', bytes + more_bytes))
return {'done', epoch, previous, id(ms, n), answers}
