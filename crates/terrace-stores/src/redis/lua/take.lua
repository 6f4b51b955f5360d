#!lua
-- Takes permits of a client from several windows, or from none. Does what `Windows` of terrace-core do, on
-- this server's clock. Answers how many it granted, how many are left in the tightest window, in how many
-- microseconds there are more, and which window that is.
-- KEYS what the client has taken in each window, by the numbers of the slots. ARGV[1] the least, ARGV[2] the
-- most that is wanted; then for each window its limit, and the length of its slots in microseconds, a
-- twentieth of the window.
local COUNTED = 22
local least, most = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local windows, room = {}, math.huge
for place, key in ipairs(KEYS) do
    local limit, length = tonumber(ARGV[2 * place + 1]), tonumber(ARGV[2 * place + 2])
    local newest = math.floor(now / length)
    local fields = redis.call('HGETALL', key)
    local counts = {}
    for i = 1, #fields, 2 do
        local slot = tonumber(fields[i])
        counts[slot] = tonumber(fields[i + 1])
        -- A clock that is set back makes nothing free.
        newest = math.max(newest, slot)
    end
    local taken, gone = 0, {}
    for slot, count in pairs(counts) do
        if slot > newest - COUNTED then
            taken = taken + count
        else
            gone[#gone + 1] = string.format('%.0f', slot)
        end
    end
    windows[place] = { limit = limit, length = length, newest = newest, counts = counts,
                       taken = taken, gone = gone }
    least = math.min(least, limit)
    room = math.min(room, math.max(0, limit - taken))
end
local granted = 0
if room >= least then granted = math.min(most, room) end
if granted > 0 then
    for place, window in ipairs(windows) do
        local key, newest = KEYS[place], window.newest
        redis.call('HINCRBY', key, string.format('%.0f', newest), string.format('%.0f', granted))
        if #window.gone > 0 then redis.call('HDEL', key, unpack(window.gone)) end
        redis.call('PEXPIRE', key, math.ceil((COUNTED + 1) * window.length / 1000))
        window.counts[newest] = (window.counts[newest] or 0) + granted
        window.taken = window.taken + granted
    end
end
local left = room - granted
local enough = left + 1
if room < least then enough = least end
local more_in, tightest = -1, 0
for place, window in ipairs(windows) do
    if window.limit - window.taken < enough then
        local wait, passed = 0, 0
        if window.taken > 0 then
            local in_the_way = math.max(1, window.taken + enough - window.limit)
            for slot = window.newest - COUNTED + 1, window.newest do
                passed = passed + (window.counts[slot] or 0)
                if passed >= in_the_way then
                    wait = (slot + COUNTED) * window.length - now
                    break
                end
            end
        end
        if math.max(0, wait) > more_in then more_in, tightest = math.max(0, wait), place - 1 end
    end
end
return { granted, left, math.max(0, more_in), tightest }
