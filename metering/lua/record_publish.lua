-- Publishes what a job made: its state, the events and the published record appear together.
-- KEYS: leases, record, events, index of running, index of succeeded, published record, index of published records.
-- ARGV: role, fence, id of the published record, that record as JSON, where its files lie, fields as JSON, data of the event
-- `published`, data of the event `status`.
-- Answers {'published'}, {'refused', status} or {'stale'}.
if not fenced(KEYS[1], ARGV[1], ARGV[2]) then
  return {'stale'}
end
local status = redis.call('HGET', KEYS[2], 'status') or ''
if status ~= 'running' then
  return {'refused', status}
end
local id = redis.call('HGET', KEYS[2], 'id')
redis.call('HSET', KEYS[6], 'record', ARGV[4], 'folder', ARGV[5])
redis.call('HSET', KEYS[6], 'tenant', redis.call('HGET', KEYS[2], 'tenant') or 'default')
redis.call('ZADD', KEYS[7], 0, ARGV[3])
set_fields(KEYS[2], ARGV[6])
redis.call('HSET', KEYS[2], 'status', 'succeeded', 'finished', whole(now()))
redis.call('ZREM', KEYS[4], id)
redis.call('ZADD', KEYS[5], 0, id)
redis.call('XADD', KEYS[3], '*', 'type', 'published', 'data', ARGV[7])
redis.call('XADD', KEYS[3], '*', 'type', 'status', 'data', ARGV[8])
return {'published'}
