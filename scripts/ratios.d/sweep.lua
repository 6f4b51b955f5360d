-- Reads each key once, in order: what a cache has never seen. Arguments after `--`: first key,
-- number of threads. Thread i of n reads first + i, first + i + n, ...
local threads_made = 0
local next_key, stride

function setup(thread)
  thread:set("index", threads_made)
  threads_made = threads_made + 1
end

function init(args)
  next_key = tonumber(args[1]) + index
  stride = tonumber(args[2])
end

function request()
  local path = "/read/" .. next_key
  next_key = next_key + stride
  return wrk.format("GET", path)
end
