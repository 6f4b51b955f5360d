-- Adds transactions of random users by `POST /write/transaction`. Arguments after `--`: number of users.
local requests = {}

function init(args)
  local headers = { ["Content-Type"] = "application/json" }
  math.randomseed(tonumber(tostring(requests):match("0x(%x+)"), 16))
  for n = 1, tonumber(args[1]) do
    local user = 1000000 + n
    local body = string.format('{"user_id":"%d","amount":12.34,"transaction_type":"credit"}', user)
    requests[n] = wrk.format("POST", "/write/transaction", headers, body)
  end
end

function request()
  return requests[math.random(#requests)]
end
