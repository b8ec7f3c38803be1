-- Moves a job from one status to another: status, times, fields, indexes and event together.
-- KEYS: leases, record, events, index of the new status, then one index for each status it may come from.
-- ARGV: role, fence ('' for both: no lease is needed), new status, 1 if it is an end, 1 if nobody may be at work on it, fields
-- as JSON, event data as JSON, then the statuses it may come from, in the order of their keys.
-- Answers {'moved', from}, {'refused', status}, {'busy'} or {'stale'}.
local role, fence, to = ARGV[1], ARGV[2], ARGV[3]
if role ~= '' and not fenced(KEYS[1], role, fence) then
  return {'stale'}
end
local status = redis.call('HGET', KEYS[2], 'status') or ''
local from
for at = 8, #ARGV do
  if ARGV[at] == status then
    from = KEYS[at - 3]
  end
end
if not from then
  return {'refused', status}
end
if ARGV[5] == '1' and at_work(KEYS[1]) then
  return {'busy'}
end
local id = redis.call('HGET', KEYS[2], 'id')
redis.call('HSET', KEYS[2], 'status', to)
set_fields(KEYS[2], ARGV[6])
if to == 'running' then
  redis.call('HSETNX', KEYS[2], 'started', whole(now()))
  local resting = redis.call('HGET', KEYS[2], 'resting')
  if resting then -- the time from its pause or its end until now does not count as work
    redis.call('HINCRBY', KEYS[2], 'rested', whole(now() - tonumber(resting)))
    redis.call('HDEL', KEYS[2], 'resting')
  end
elseif to == 'paused' then
  redis.call('HSETNX', KEYS[2], 'resting', whole(now()))
end
if ARGV[4] == '1' then
  redis.call('HSET', KEYS[2], 'finished', whole(now()))
end
redis.call('ZREM', from, id)
redis.call('ZADD', KEYS[4], 0, id)
redis.call('XADD', KEYS[3], '*', 'type', 'status', 'data', ARGV[7])
return {'moved', status}
