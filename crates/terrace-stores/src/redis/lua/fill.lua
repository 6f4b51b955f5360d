-- Stores what was loaded after a miss, unless something that happened since makes it too late.
-- KEYS[1] the epoch, KEYS[2..] the entries. ARGV[1] the latest time at which this may run, in ms;
-- then for each entry its bytes and its life in ms.
-- Answers how many were stored. Of an entry, bytes 2 to 17 are its epoch, 18 to 37 its version in
-- digits, and 38 is its kind; the tombstone of an unknown version goes on with the latest known
-- version (39 to 58) and the time in ms when the doubt ends (59 to 78), both in digits.
local call, sub = redis.call, string.sub
local epoch = sub(call('GET', KEYS[1]) or '', 1, 16)
local time = call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if now > tonumber(ARGV[1]) then return 0 end
now = string.format('%020.0f', now)
local stored = 0
for i = 2, #KEYS do
  local key, entry, life = KEYS[i], ARGV[2 * i - 2], ARGV[2 * i - 1]
  if sub(entry, 2, 17) == epoch then
    -- Mostly there is nothing, and one call does.
    if call('SET', key, entry, 'PX', life, 'NX') then
      stored = stored + 1
    else
      -- What is no string is no entry; it must not fail the others of this call.
      local there = redis.pcall('GETRANGE', key, 0, 77)
      if type(there) == 'table' then
        if sub(there.err, 1, 9) ~= 'WRONGTYPE' then return there end
        there = ''
      end
      local theirs, left = '', 0
      if sub(there, 1, 17) == sub(entry, 1, 17) then
        theirs = sub(there, 18, 37)
        if theirs == '18446744073709551615' and now >= sub(there, 59, 78) then
          theirs = sub(there, 39, 58)
        end
        -- What is replaced keeps older fills out for this long; so must what replaces it.
        left = call('PTTL', key)
      end
      -- An entry of the same version replaces one that is over for readers.
      if theirs <= sub(entry, 18, 37) then
        if left > tonumber(life) then life = left end
        call('SET', key, entry, 'PX', life)
        stored = stored + 1
      end
    end
  end
end
return stored
