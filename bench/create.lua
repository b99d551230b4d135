-- wrk: one create with a name of its own in each request.
local prefix = os.getenv("BENCH_PREFIX") or "bench"
local count = 0
local thread = 0

function setup(t)
  t:set("id", thread)
  thread = thread + 1
end

function request()
  count = count + 1
  local body = string.format('{"title":"%s %d %d","text":"Some words about this note."}', prefix, id, count)
  return wrk.format("POST", nil, wrk.headers, body)
end
