-- Settles every open hold of a job that nobody works on as unconfirmed: it may have been charged and will not be sent again.
-- KEYS: leases, record, budget, holds, settled, events. No ARGV.
-- Answers {'abandoned', images}, {'busy'} while a lease is held, or {'open'} while the job still wants its holds resolved.
local leases, record, budget, holds, settled, events = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local status = redis.call('HGET', record, 'status')
if status == 'queued' or status == 'running' or status == 'pausing' or status == 'paused' then
  return {'open'}
end
if at_work(leases) then
  return {'busy'}
end
local lost = 0
local open = redis.call('HGETALL', holds)
for at = 1, #open, 2 do
  local hold = cjson.decode(open[at + 1])
  local images = hold.stop - hold.start
  lost = lost + images
  spent(budget, hold, 'unconfirmed')
  hold.outcome = 'unconfirmed'
  hold.path = ''
  redis.call('HDEL', holds, open[at])
  redis.call('HSET', settled, open[at], cjson.encode(hold))
  redis.call('XADD', events, '*', 'type', 'budget', 'data',
    cjson.encode({api = hold.api, chunk = open[at], outcome = 'unconfirmed', images = images}))
end
return {'abandoned', lost}
