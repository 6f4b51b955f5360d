#!lua
-- Takes permits of a client, as many of those wanted as there are. Does what `Window` of terrace-core
-- does, on this server's clock. Answers how many it granted, how many are left, and in how many
-- microseconds there are more.
-- KEYS[1] what the client has taken, by the numbers of the slots. ARGV[1] the limit in a window;
-- ARGV[2] the length of a slot in microseconds, a twentieth of the window; ARGV[3] how many are wanted.
local COUNTED = 22
local limit, length, wanted = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local newest = math.floor(now / length)
local fields = redis.call('HGETALL', KEYS[1])
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
local granted = math.max(0, math.min(wanted, limit - taken))
if granted > 0 then
    redis.call('HINCRBY', KEYS[1], string.format('%.0f', newest), string.format('%.0f', granted))
    if #gone > 0 then redis.call('HDEL', KEYS[1], unpack(gone)) end
    redis.call('PEXPIRE', KEYS[1], math.ceil((COUNTED + 1) * length / 1000))
end
counts[newest] = (counts[newest] or 0) + granted
taken = taken + granted
local more_in, passed = 0, 0
if taken > 0 then
    local in_the_way = math.max(1, taken + 1 - limit)
    for slot = newest - COUNTED + 1, newest do
        passed = passed + (counts[slot] or 0)
        if passed >= in_the_way then
            more_in = (slot + COUNTED) * length - now
            break
        end
    end
end
return { granted, math.max(0, limit - taken), math.max(0, more_in) }
