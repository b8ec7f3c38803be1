-- Gives a lease back; its fence passes no more. The fence counter stays, so that numbers are never used twice.
-- KEYS: leases. ARGV: role, fence, 1 if this attempt does not count (an orderly shutdown). Answers 1, or 0 when it was lost.
if not fenced(KEYS[1], ARGV[1], ARGV[2]) then
  return 0
end
redis.call('HSET', KEYS[1], 'held:' .. ARGV[1], '', 'deadline:' .. ARGV[1], '0')
-- none is left to take back where there was durable progress
if ARGV[3] == '1' and tonumber(redis.call('HGET', KEYS[1], 'attempts:' .. ARGV[1]) or '0') > 0 then
  redis.call('HINCRBY', KEYS[1], 'attempts:' .. ARGV[1], -1)
end
return 1
