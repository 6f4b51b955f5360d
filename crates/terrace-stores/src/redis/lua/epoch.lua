#!lua flags=allow-oom
-- Answers the epoch in force, the server's time in ms and since when its memory is whole, and makes a
-- new one when there is none or when it belongs to the memory of another server process.
-- KEYS[1] the epoch. ARGV[1] this process's run id, ARGV[2] a random epoch to use when one is
-- needed, ARGV[3] epochs that the caller saw end, ARGV[4] whether to begin a new one
-- in any case ('1').
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local there = redis.call('GET', KEYS[1])
if ARGV[4] ~= '1' and there and string.sub(there, 17, -21) == ARGV[1]
  and not string.find(ARGV[3], string.sub(there, 1, 16), 1, true) then
  return { string.sub(there, 1, 16), now, tonumber(string.sub(there, -20)) }
end
redis.call('SET', KEYS[1], ARGV[2] .. ARGV[1] .. string.format('%020.0f', now))
return { ARGV[2], now, now }
