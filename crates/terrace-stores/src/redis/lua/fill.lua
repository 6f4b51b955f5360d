-- Stores what was loaded after a miss, unless something that happened since makes it too late.
-- KEYS[1] the epoch, KEYS[2..] the entries. ARGV for each entry: its bytes, its life in ms.
-- Answers how many were stored. Of an entry, bytes 2 to 17 are its epoch, 18 to 37 its version in
-- digits, and 38 is its kind.
local epoch = string.sub(redis.call('GET', KEYS[1]) or '', 1, 16)
local stored = 0
for i = 2, #KEYS do
  local entry, life = ARGV[2 * i - 3], ARGV[2 * i - 2]
  if string.sub(entry, 2, 17) == epoch then
    local there = redis.call('GETRANGE', KEYS[i], 0, 37)
    local mine, theirs = string.sub(entry, 18, 37), string.sub(there, 18, 37)
    if string.sub(there, 1, 17) ~= string.sub(entry, 1, 17) or theirs < mine
      or (theirs == mine and string.sub(there, 38, 38) == 't') then
      redis.call('SET', KEYS[i], entry, 'PX', life)
      stored = stored + 1
    end
  end
end
return stored
