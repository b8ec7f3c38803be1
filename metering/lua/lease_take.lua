-- Takes the lease of a role unless someone holds it and its deadline lies ahead.
-- KEYS: leases. ARGV: role, holder, microseconds, most attempts since the last durable progress.
-- Answers {'held', fence, attempt}, {'taken'} or {'exhausted', attempts}.
local leases, role = KEYS[1], ARGV[1]
local state = redis.call('HMGET', leases, 'held:' .. role, 'deadline:' .. role, 'attempts:' .. role)
if state[1] and state[1] ~= '' and tonumber(state[2]) > now() then
  return {'taken'}
end
local attempts = tonumber(state[3] or '0')
if attempts >= tonumber(ARGV[4]) then
  return {'exhausted', attempts}
end
local fence = redis.call('HINCRBY', leases, 'fence:' .. role, 1)
redis.call('HSET', leases,
  'held:' .. role, fence,
  'holder:' .. role, ARGV[2],
  'deadline:' .. role, whole(now() + tonumber(ARGV[3])),
  'attempts:' .. role, attempts + 1)
return {'held', fence, attempts + 1}
