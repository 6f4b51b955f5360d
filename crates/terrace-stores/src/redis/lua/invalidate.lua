#!lua flags=allow-oom
-- Leaves a tombstone with the new version where no entry is as new, and tells the other instances,
-- in one step. Runs when memory is full, too: correctness must not depend on room.
-- KEYS[1] the epoch, KEYS[2] the number of messages, KEYS[3..] the entries. ARGV[1] a random epoch
-- with the run id, for when there is none; ARGV[2] the life of tombstones in ms; ARGV[3] the
-- channel, or nothing; ARGV[4] the body of the message; ARGV[5] the format of entries; ARGV[6..]
-- the versions in digits.
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[1], epoch)
end
epoch = string.sub(epoch, 1, 16)
local head = ARGV[5] .. epoch
for i = 3, #KEYS do
  local version = ARGV[i + 3]
  -- What is no string is no entry; it must not fail the others of this call.
  local there = redis.pcall('GETRANGE', KEYS[i], 0, 37)
  if type(there) == 'table' then
    if string.sub(there.err, 1, 9) ~= 'WRONGTYPE' then return there end
    there = ''
  end
  if string.sub(there, 1, 17) ~= head or string.sub(there, 18, 37) < version then
    redis.call('SET', KEYS[i], head .. version .. 't', 'PX', ARGV[2])
  elseif string.sub(there, 18, 38) == version .. 't' then
    -- A second write whose version is not known needs the whole time again. A known write does not
    -- prolong that doubt, or a key that is written often would never be cached again.
    redis.call('PEXPIRE', KEYS[i], ARGV[2])
  end
end
if ARGV[3] ~= '' then
  local number = string.format('%020.0f', redis.call('INCR', KEYS[2]))
  redis.call('PUBLISH', ARGV[3], '1W' .. epoch .. number .. ARGV[4])
end
return 1
