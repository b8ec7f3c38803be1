-- Sets a field that the first writer decides. KEYS: leases, hash. ARGV: role, fence, field, value.
-- Answers {'value', the value that stands} or {'stale'}.
if not fenced(KEYS[1], ARGV[1], ARGV[2]) then
  return {'stale'}
end
redis.call('HSETNX', KEYS[2], ARGV[3], ARGV[4])
return {'value', redis.call('HGET', KEYS[2], ARGV[3])}
