-- Deletes a record that has ended, with all its keys, once nobody is at work on it.
-- KEYS: leases, record, index of all, open records, index of its status for each status, then every other key.
-- ARGV: how many statuses there are, then those that are ends. Answers {'deleted'}, {'refused', status} or {'busy'}.
local status = redis.call('HGET', KEYS[2], 'status') or ''
local ended = false
for at = 2, #ARGV do
  ended = ended or ARGV[at] == status
end
if not ended then
  return {'refused', status}
end
if at_work(KEYS[1]) then
  return {'busy'}
end
local id = redis.call('HGET', KEYS[2], 'id')
redis.call('ZREM', KEYS[3], id)
redis.call('SREM', KEYS[4], id)
for at = 5, 4 + tonumber(ARGV[1]) do
  redis.call('ZREM', KEYS[at], id)
end
for at = 5 + tonumber(ARGV[1]), #KEYS do
  redis.call('DEL', KEYS[at])
end
redis.call('DEL', KEYS[1], KEYS[2])
return {'deleted'}
