#!lua flags=allow-oom
-- Leaves a tombstone with the new version where no entry is as new, and tells the other instances,
-- in one step. Answers the epoch and the number of the message. Runs when memory is full, too: correctness must not depend on room.
-- KEYS[1] the epoch, KEYS[2] the number of messages, KEYS[3..] the entries. ARGV[1] a random epoch
-- with the run id, for when there is none; ARGV[2] the life of tombstones in ms; ARGV[3] the
-- channel, or nothing; ARGV[4] the body of the message; ARGV[5] the format of entries; ARGV[6..]
-- the versions in digits.
local sub = string.sub
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  local time = redis.call('TIME')
  epoch = ARGV[1] .. string.format('%020.0f', time[1] * 1000 + math.floor(time[2] / 1000))
  redis.call('SET', KEYS[1], epoch)
end
epoch = sub(epoch, 1, 16)
local head, unknown = ARGV[5] .. epoch, '18446744073709551615'
for i = 3, #KEYS do
  local key, version = KEYS[i], ARGV[i + 3]
  -- What is no string is no entry; it must not fail the others of this call.
  local there = redis.pcall('GETRANGE', key, 0, 77)
  if type(there) == 'table' then
    if sub(there.err, 1, 9) ~= 'WRONGTYPE' then return there end
    there = ''
  end
  local floor, doubt = '', ''
  if sub(there, 1, 17) == head then
    floor = sub(there, 18, 37)
    if floor == unknown then floor, doubt = sub(there, 39, 58), sub(there, 59, 78) end
  end
  if version == unknown then
    -- A second write whose version is not known needs the whole time again.
    local time = redis.call('TIME')
    doubt = string.format('%020.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[2])
    if floor == '' then floor = '00000000000000000000' end
    redis.call('SET', key, head .. unknown .. 't' .. floor .. doubt, 'PX', ARGV[2])
  elseif floor >= version then
    -- Entries, too, keep older fills out only while they are there.
    redis.call('PEXPIRE', key, ARGV[2], 'GT')
  elseif doubt ~= '' then
    -- A known write does not prolong the doubt, or a key that is written often would never be
    -- cached again; but it needs its own time, which is longer than the doubt's rest.
    redis.call('SET', key, head .. unknown .. 't' .. version .. doubt, 'PX', ARGV[2])
  else
    redis.call('SET', key, head .. version .. 't', 'PX', ARGV[2])
  end
end
local number = string.format('%020.0f', redis.call('INCR', KEYS[2]))
if ARGV[3] ~= '' then redis.call('PUBLISH', ARGV[3], '1W' .. epoch .. number .. ARGV[4]) end
return { epoch, number }
