-- Stores a job with its budget, or finds the one that the same idempotency key made.
-- KEYS: idempotency record, record, budget, apis, events, index of all, index of its status, open jobs, the tenant's quota.
-- ARGV: id, digest of the body, microseconds for which the key is honoured ('0': there is no key), record, budget and apis as
-- JSON objects of strings, event data.
-- Then the tenant, whose quota says how many records it may have open (`running_jobs`).
-- Answers {'created', microseconds of when}, {'exists', id}, {'reused'} or {'full', how many are open}.
local id, window = ARGV[1], tonumber(ARGV[3])
if window > 0 then
  local before = redis.call('HMGET', KEYS[1], 'digest', 'id', 'deadline')
  if before[2] and tonumber(before[3]) > now() then
    if before[1] == ARGV[2] then
      return {'exists', before[2]}
    end
    return {'reused'}
  end
end
local most = redis.call('HGET', KEYS[9], 'running_jobs')
if most then
  local open = open_of(ARGV[8], KEYS[8], KEYS[2], id)
  if open >= tonumber(most) then
    return {'full', open}
  end
end
if window > 0 then
  redis.call('HSET', KEYS[1], 'digest', ARGV[2], 'id', id, 'deadline', whole(now() + window))
  redis.call('PEXPIRE', KEYS[1], whole(window / 1000 + 60000))
end
local created = whole(now())
redis.call('HSET', KEYS[2], 'id', id, 'status', 'queued', 'created', created)
set_fields(KEYS[2], ARGV[4])
set_fields(KEYS[3], ARGV[5])
set_fields(KEYS[4], ARGV[6])
redis.call('ZADD', KEYS[6], 0, id)
redis.call('ZADD', KEYS[7], 0, id)
redis.call('SADD', KEYS[8], id)
redis.call('XADD', KEYS[5], '*', 'type', 'status', 'data', ARGV[7])
return {'created', created}
