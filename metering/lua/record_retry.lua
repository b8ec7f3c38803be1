-- Puts a failed job back into the queue, once nobody is at work on it: its end is undone, its attempts count anew, and parts
-- of it are set back. What it paid for, its checkpoints and its open holds stay.
-- KEYS: leases, record, events, apis, open jobs, index of failed, index of queued, its tenant's quota.
-- ARGV: fields of `apis` to set back as JSON, event data as JSON.
-- Answers {'moved'}, {'refused', status}, {'busy'} or {'full', how many jobs of its tenant are open}.
local leases, record = KEYS[1], KEYS[2]
local status = redis.call('HGET', record, 'status') or ''
if status ~= 'failed' then
  return {'refused', status}
end
if at_work(leases) then
  return {'busy'}
end
local id = redis.call('HGET', record, 'id')
local most = redis.call('HGET', KEYS[8], 'running_jobs')
if most then
  local open = open_of(redis.call('HGET', record, 'tenant') or 'default', KEYS[5], record, id)
  if open >= tonumber(most) then
    return {'full', open}
  end
end
redis.call('HSET', record, 'status', 'queued', 'reason', '')
redis.call('HSETNX', record, 'resting', redis.call('HGET', record, 'finished') or whole(now()))
redis.call('HDEL', record, 'error', 'finished')
set_fields(KEYS[4], ARGV[1])
for _, field in ipairs(redis.call('HKEYS', leases)) do
  if string.find(field, '^attempts:') then
    redis.call('HSET', leases, field, '0')
  end
end
redis.call('SADD', KEYS[5], id)
redis.call('ZREM', KEYS[6], id)
redis.call('ZADD', KEYS[7], 0, id)
redis.call('XADD', KEYS[3], '*', 'type', 'status', 'data', ARGV[2])
return {'moved'}
