-- Moves the deadline of a lease that is still ours. A lease past its deadline that nobody took is ours.
-- KEYS: leases. ARGV: role, fence, microseconds. Answers 1, or 0 when it is lost.
if not fenced(KEYS[1], ARGV[1], ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'deadline:' .. ARGV[1], whole(now() + tonumber(ARGV[3])))
return 1
