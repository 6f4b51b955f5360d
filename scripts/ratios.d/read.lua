-- Reads random keys. Arguments after `--`: path before the key, number of keys, consistency.
-- Requests are made once, so that the generator spends its time on the connection.
local requests = {}

function init(args)
  local path, keys = args[1], tonumber(args[2])
  if args[3] then
    wrk.headers["Terrace-Consistency"] = args[3]
  end
  math.randomseed(tonumber(tostring(requests):match("0x(%x+)"), 16))
  for n = 1, keys do
    requests[n] = wrk.format("GET", path .. (1000000 + n))
  end
end

function request()
  return requests[math.random(#requests)]
end
