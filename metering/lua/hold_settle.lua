-- Ends a hold, once: moves its budget, records the outcome and announces it.
-- KEYS: leases, budget, holds, settled, events.
-- ARGV: role, fence, chunk id, confirmed | released | unconfirmed, where the answer lies ('' if nowhere), event data as JSON.
-- Answers {'settled'}, {'already', outcome}, {'unknown'} or {'stale'}.
local leases, budget, holds, settled, events = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local chunk, outcome = ARGV[3], ARGV[4]
if not fenced(leases, ARGV[1], ARGV[2]) then
  return {'stale'}
end
local before = redis.call('HGET', settled, chunk)
if before then
  return {'already', before}
end
local json = redis.call('HGET', holds, chunk)
if not json then
  return {'unknown'}
end
local hold = cjson.decode(json)
spent(budget, hold, outcome == 'released' and '' or outcome)
hold.outcome = outcome
hold.path = ARGV[5]
redis.call('HDEL', holds, chunk)
redis.call('HSET', settled, chunk, cjson.encode(hold))
if outcome == 'confirmed' then
  redis.call('HSET', leases, 'attempts:' .. ARGV[1], 0)
end
redis.call('XADD', events, '*', 'type', 'budget', 'data', ARGV[6])
return {'settled'}
