-- Writes fields of a record and an event together, under a lease, and keeps the event as a point of a series of its own, which
-- nobody trims: when it has grown to twice its size, every second point goes, so that what is left still spans all of it.
-- KEYS: leases, record, events, series. ARGV: role, fence, fields as JSON, event type, event data as JSON, points that the series
-- keeps at least, seconds for which it is kept. Answers {'written'} or {'stale'}.
local series, keep = KEYS[4], tonumber(ARGV[6])
if not fenced(KEYS[1], ARGV[1], ARGV[2]) then
  return {'stale'}
end
set_fields(KEYS[2], ARGV[3])
local id = redis.call('XADD', KEYS[3], '*', 'type', ARGV[4], 'data', ARGV[5])
if redis.call('XLEN', series) >= 2 * keep then
  local points = redis.call('XRANGE', series, '-', '+')
  redis.call('DEL', series) -- entries that are deleted one by one keep their memory
  for at = 1, #points, 2 do
    redis.call('XADD', series, points[at][1], unpack(points[at][2]))
  end
end
redis.call('XADD', series, id, 'type', ARGV[4], 'data', ARGV[5])
redis.call('EXPIRE', series, ARGV[7])
return {'written'}
