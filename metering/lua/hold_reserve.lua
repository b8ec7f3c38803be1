-- Write-ahead: records what is about to be sent and holds its budget, before it is sent.
-- KEYS: leases, record, budget, holds, settled, prefix of the tenants' keys ('' for no quotas). ARGV: role, fence, api, chunk id, images, the hold as JSON.
-- Answers {'quota', seconds until the tenant may send more}, {'reserved'}, {'open', hold}, {'settled', outcome}, {'spent', left in images}, {'closed', status} or {'stale'}.
local leases, record, budget, holds, settled = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local api, chunk, images = ARGV[3], ARGV[4], tonumber(ARGV[5])
if not fenced(leases, ARGV[1], ARGV[2]) then
  return {'stale'}
end
local open = redis.call('HGET', holds, chunk)
if open then
  return {'open', open}
end
local outcome = redis.call('HGET', settled, chunk)
if outcome then
  return {'settled', outcome}
end
local status = redis.call('HGET', record, 'status')
if status ~= 'running' then
  return {'closed', status or ''}
end
local function counted(suffix)
  local sum = 0
  for _, part in ipairs({'confirmed', 'unconfirmed', 'reserved'}) do
    sum = sum + tonumber(redis.call('HGET', budget, part .. suffix) or '0')
  end
  return sum
end
local left = tonumber(redis.call('HGET', budget, 'limit')) - counted('')
local most = redis.call('HGET', budget, 'queries_per_api')
if most then
  left = math.min(left, tonumber(most) - counted(':' .. api))
end
local seconds = redis.call('HGET', budget, 'seconds')
if seconds then
  local times = redis.call('HMGET', record, 'started', 'rested')
  if times[1] and now() - tonumber(times[1]) - tonumber(times[2] or '0') >= tonumber(seconds) then
    left = 0
  end
end
local price = tonumber(redis.call('HGET', budget, 'price:' .. api) or '0')
local function cost(count)
  return math.ceil(count * price / 1000)
end
local cost_limit = redis.call('HGET', budget, 'cost_limit')
if cost_limit then
  local money = tonumber(cost_limit)
  for _, part in ipairs({'confirmed', 'unconfirmed', 'reserved'}) do
    money = money - tonumber(redis.call('HGET', budget, 'cost_' .. part) or '0')
  end
  if cost(images) > money then
    local affordable = math.floor(money / price * 1000)
    while cost(affordable) > money do
      affordable = affordable - 1
    end
    left = math.min(left, affordable)
  end
end
if images > left then
  return {'spent', left}
end
local hold = cjson.decode(ARGV[6])
if KEYS[6] ~= '' then
  local tenant = KEYS[6] .. (redis.call('HGET', record, 'tenant') or 'default')
  local most = redis.call('HGET', tenant, 'queries_a_day')
  local today = math.floor(now() / 86400000000)
  local counter = tenant .. ':day:' .. whole(today)
  if most and tonumber(redis.call('GET', counter) or '0') + images > tonumber(most) then
    return {'quota', math.ceil((today + 1) * 86400 - now() / 1000000)}
  end
  redis.call('INCRBY', counter, images)
  redis.call('EXPIRE', counter, 259200)
  hold.counter = counter
end
hold.cost = whole(cost(images))
spend(budget, 'reserved', api, images, hold.cost)
hold.since = math.floor(now() / 1000000)
redis.call('HSET', holds, chunk, cjson.encode(hold))
return {'reserved'}
