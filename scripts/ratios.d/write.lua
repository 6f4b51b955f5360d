-- Writes random keys by `POST /write`. Arguments after `--`: number of keys.
local requests = {}

function init(args)
  local headers = { ["Content-Type"] = "application/json" }
  math.randomseed(tonumber(tostring(requests):match("0x(%x+)"), 16))
  for n = 1, tonumber(args[1]) do
    local key = 1000000 + n
    local body = string.format('{"key":"%d","value":"value-of-key-%d"}', key, key)
    requests[n] = wrk.format("POST", "/write", headers, body)
  end
end

function request()
  return requests[math.random(#requests)]
end
