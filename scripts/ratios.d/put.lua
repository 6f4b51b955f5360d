-- Writes random keys by `PUT /v1/records/{key}`. Arguments after `--`: number of keys, and for a steady
-- rate the region and how many milliseconds each connection waits between its requests.
local requests = {}
local pause = 0

function init(args)
  local headers = { ["Content-Type"] = "application/json" }
  if args[2] then headers["X-Region"] = args[2] end
  pause = tonumber(args[3] or "0")
  math.randomseed(tonumber(tostring(requests):match("0x(%x+)"), 16))
  for n = 1, tonumber(args[1]) do
    local key = 1000000 + n
    local body = string.format('{"value":"value-of-key-%d"}', key)
    requests[n] = wrk.format("PUT", "/v1/records/" .. key, headers, body)
  end
end

function delay()
  return pause
end

function request()
  return requests[math.random(#requests)]
end
