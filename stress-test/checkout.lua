-- Checks out every order once: thread i of T asks for the orders first+i, first+i+T, first+i+2T, ...
-- Arguments: the first order, how many orders there are from there on, and the number of threads.
-- The last line on stdout is the result as JSON; times are in microseconds.

local threads = {}

function setup(thread)
  thread:set("index", #threads)
  threads[#threads + 1] = thread
end

function init(args)
  first, order_count, thread_count = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
  issued = 0
  exhausted = 0
end

function request()
  local number = index + issued * thread_count
  if number >= order_count then
    exhausted = 1
    wrk.thread:stop()
  end
  issued = issued + 1
  return wrk.format("POST", "/orders/checkout/" .. first + number)
end

local function over_threads(name, combine)
  local result = 0
  for _, thread in ipairs(threads) do
    result = combine(result, thread:get(name))
  end
  return result
end

function done(summary, latency, _)
  local errors = summary.errors
  io.write(string.format(
    '\n{"answers": %d, "duration_us": %d, "p50_us": %d, "p99_us": %d, "issued": %d, "exhausted": %d, '
      .. '"not_2xx": %d, "connection_errors": %d, "timeouts": %d}\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    over_threads("issued", math.max) * #threads, over_threads("exhausted", math.max),
    errors.status, errors.connect + errors.read + errors.write, errors.timeout
  ))
end
