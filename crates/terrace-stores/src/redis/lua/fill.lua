-- Stores what was loaded after a miss, unless something that happened since makes it too late.
-- KEYS[1] the epoch, KEYS[2..] the entries. ARGV for each entry: its bytes, its life in ms.
-- Answers how many were stored. Of an entry, bytes 2 to 17 are its epoch, 18 to 37 its version in
-- digits, and 38 is its kind.
local call, sub = redis.call, string.sub
local epoch = sub(call('GET', KEYS[1]) or '', 1, 16)
local stored = 0
for i = 2, #KEYS do
  local key, entry, life = KEYS[i], ARGV[2 * i - 3], ARGV[2 * i - 2]
  if sub(entry, 2, 17) == epoch then
    -- Mostly there is nothing, and one call does.
    if call('SET', key, entry, 'PX', life, 'NX') then
      stored = stored + 1
    else
      -- What is no string is no entry; it must not fail the others of this call.
      local there = redis.pcall('GETRANGE', key, 0, 37)
      if type(there) == 'table' then
        if sub(there.err, 1, 9) ~= 'WRONGTYPE' then return there end
        there = ''
      end
      local mine, theirs = sub(entry, 18, 37), sub(there, 18, 37)
      if sub(there, 1, 17) ~= sub(entry, 1, 17) or theirs < mine
        or (theirs == mine and sub(there, 38, 38) == 't') then
        call('SET', key, entry, 'PX', life)
        stored = stored + 1
      end
    end
  end
end
return stored
