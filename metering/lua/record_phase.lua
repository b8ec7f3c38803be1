-- Notes that a phase has started; a job's phase only goes forward.
-- KEYS: leases, record, events. ARGV: role, fence, phase, its place in the order, event data as JSON.
-- Answers {'started'}, {'before'} if this phase or a later one had started, or {'stale'}.
if not fenced(KEYS[1], ARGV[1], ARGV[2]) then
  return {'stale'}
end
if tonumber(redis.call('HGET', KEYS[2], 'rank') or '-1') >= tonumber(ARGV[4]) then
  return {'before'}
end
redis.call('HSET', KEYS[2], 'phase', ARGV[3], 'rank', ARGV[4], 'at:' .. ARGV[3], whole(now()))
redis.call('XADD', KEYS[3], '*', 'type', 'phase', 'data', ARGV[5])
return {'started'}
