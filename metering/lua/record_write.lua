-- Writes fields of a hash and an event together, under a lease.
-- KEYS: leases, hash, events. ARGV: role, fence, fields as JSON, 1 if this is durable progress, event type ('' for none),
-- event data as JSON. Answers {'written'} or {'stale'}.
local role = ARGV[1]
if not fenced(KEYS[1], role, ARGV[2]) then
  return {'stale'}
end
set_fields(KEYS[2], ARGV[3])
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[1], 'attempts:' .. role, 0)
end
if ARGV[5] ~= '' then
  redis.call('XADD', KEYS[3], '*', 'type', ARGV[5], 'data', ARGV[6])
end
return {'written'}
