-- Changes fields of a record, its budget and its parts together, if nobody changed it since it was read.
-- KEYS: record, budget, apis, events.
-- ARGV: the field that was read, its value then, fields, budget fields and parts as JSON objects of strings, event data as
-- JSON, then the statuses that do not allow it.
-- Answers {'changed'}, {'refused', status} or {'stale'} when it was changed in between.
if redis.call('HGET', KEYS[1], ARGV[1]) ~= ARGV[2] then
  return {'stale'}
end
local status = redis.call('HGET', KEYS[1], 'status')
for at = 7, #ARGV do
  if ARGV[at] == status then
    return {'refused', status}
  end
end
set_fields(KEYS[1], ARGV[3])
set_fields(KEYS[2], ARGV[4])
set_fields(KEYS[3], ARGV[5])
redis.call('XADD', KEYS[4], '*', 'type', 'changed', 'data', ARGV[6])
return {'changed'}
