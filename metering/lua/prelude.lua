-- Opens every script. `now` is defined just above this text, by metering/scripts.py: microseconds since the epoch.

-- A whole number as text: Lua's own conversion keeps 14 digits only.
local function whole(number)
  return string.format('%.0f', number)
end

-- A number as text that reads back as the same number.
local function exact(number)
  return string.format('%.17g', number)
end

-- Whether `role` is held under `fence`. False once the lease was released or taken anew, however late its deadline is.
local function fenced(leases, role, fence)
  return fence ~= '' and redis.call('HGET', leases, 'held:' .. role) == fence
end

-- Whether anyone holds a lease whose deadline lies ahead.
local function at_work(leases)
  local fields = redis.call('HGETALL', leases)
  for at = 1, #fields, 2 do
    local role = string.match(fields[at], '^held:(.*)$')
    if role and fields[at + 1] ~= '' and tonumber(redis.call('HGET', leases, 'deadline:' .. role)) > now() then
      return true
    end
  end
  return false
end

-- Adds images and their cost (millionths, as text that HINCRBY takes) to a part of a budget, and to that of one API.
local function spend(budget, part, api, images, cost)
  if images ~= 0 then
    redis.call('HINCRBY', budget, part, images)
    redis.call('HINCRBY', budget, part .. ':' .. api, images)
  end
  if cost and tonumber(cost) ~= 0 then
    redis.call('HINCRBY', budget, 'cost_' .. part, cost)
  end
end

-- Moves what a hold reserved to the part that it ended in; '' when it was released.
local function spent(budget, hold, outcome)
  local images, cost = hold.stop - hold.start, hold.cost or '0'
  spend(budget, 'reserved', hold.api, -images, '-' .. cost)
  if outcome ~= '' then
    spend(budget, outcome, hold.api, images, cost)
  elseif hold.counter then
    redis.call('DECRBY', hold.counter, images)
  end
end

-- Gives the images of a charge back to an API key: to its budget, its usage and its audit stream.
local function give_back(record, audit, usage, charge, model, images, day)
  redis.call('HINCRBY', record, 'spent', -images)
  redis.call('HINCRBY', usage, day .. ' ' .. model, -images)
  redis.call('XADD', audit, '*', 'kind', 'refund', 'charge', charge, 'model', model, 'images', images, 'at', whole(now()))
end

-- Sets every field of a JSON object of strings.
local function set_fields(key, json)
  for field, value in pairs(cjson.decode(json)) do
    redis.call('HSET', key, field, value)
  end
end

-- How many of the records in the set `open` are of `tenant` and have not ended. `key` is the key of a record, `id` its id.
local function open_of(tenant, open, key, id)
  local count = 0
  for _, other in ipairs(redis.call('SMEMBERS', open)) do
    local of = redis.call('HMGET', string.gsub(key, id, other), 'tenant', 'finished')
    if (of[1] or 'default') == tenant and not of[2] then
      count = count + 1
    end
  end
  return count
end
