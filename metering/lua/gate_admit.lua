-- Decides one request of an API key, and charges it if it is granted. Nothing is written when it is refused,
-- but that the clock was set back.
-- KEYS: key record, mark of the request, audit stream.
-- ARGV: model, images, digest of the body, charge id, lease and replay window in microseconds, 1 if the request may come again
-- (it has an idempotency key, and the mark is named by that).
-- Answers {'unknown'} or {verdict, limits, ...}; limits are burst, burst left, microseconds until it is full, rate, budget and
-- budget left, '' where there is no limit.
local record, mark, audit = KEYS[1], KEYS[2], KEYS[3]
local model, images, charge = ARGV[1], tonumber(ARGV[2]), ARGV[4]
local digest = model .. ' ' .. ARGV[3]  -- the same body sent to another model is another request
local lease, window, repeatable = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7] == '1'
local at = now()

local key = redis.call('HMGET', record, 'revoked', 'models', 'budget', 'spent', 'rate', 'burst', 'arrival', 'expires')
if not key[1] then return {'unknown'} end
local budget, spent = tonumber(key[3]), tonumber(key[4])  -- nil where there is no limit
local rate, burst = tonumber(key[5]), tonumber(key[6])
-- GCRA: `arrival` is when the burst is whole again; requests are granted while it is at most a burst ahead of now.
local interval, arrival  -- microseconds an image; microseconds since the epoch
if rate then
  interval = 1000000 / rate
  arrival = math.max(tonumber(key[7]), at)
  if arrival > at + burst * interval + 1 then
    -- the clock was set back: without this, the key would wait for as long as that
    arrival = at + burst * interval
    redis.call('HSET', record, 'arrival', exact(arrival))
  end
end
local rounding = 0.5  -- microseconds: today's time leaves a float no finer

local function answer(verdict, ...)
  local limits = {'', '', '', '', '', ''}
  if rate then
    limits[1] = whole(burst)
    local left = math.floor((burst * interval - (arrival - at) + rounding) / interval)
    limits[2] = whole(math.max(0, math.min(burst, left)))
    limits[3] = whole(math.ceil(arrival - at))
    limits[4] = key[5]
  end
  if budget then
    limits[5] = whole(budget)
    limits[6] = whole(budget - spent)
  end
  return {verdict, limits, ...}
end

if key[1] == '1' then return answer('revoked') end
local expires = key[8] and tonumber(key[8])  -- nil or false where it never does
if expires and at >= expires then return answer('expired') end

-- A request seen before was decided and charged once and for all.
local seen = redis.call('HMGET', mark, 'digest', 'state', 'charge', 'cost', 'deadline', 'until', 'answer')
if seen[1] and tonumber(seen[6]) > at then
  if seen[1] ~= digest then return answer('reused') end
  if seen[2] == 'running' and tonumber(seen[5]) > at then return answer('running', whole(tonumber(seen[5]) - at)) end
  if seen[7] then return answer('replayed', seen[3], seen[4], seen[7]) end
  -- its process died, or its answer was too large to keep: the charge stands, the answer is computed again
  redis.call('HSET', mark, 'state', 'running', 'deadline', whole(at + lease))
  return answer('resumed', seen[3], seen[4], redis.call('HINCRBY', mark, 'turn', 1))
end

if key[2] ~= '' and not cjson.decode(key[2])[model] then return answer('forbidden') end
if rate and images > burst then return answer('large') end
if budget and spent + images > budget then return answer('spent') end
if rate then
  local wait = arrival + images * interval - burst * interval - at
  if wait > rounding then return answer('fast', whole(math.ceil(wait))) end
  arrival = arrival + images * interval
  redis.call('HSET', record, 'arrival', exact(arrival))
end

spent = redis.call('HINCRBY', record, 'spent', images)
redis.call('HINCRBY', record, 'model:' .. model, images)
redis.call('XADD', audit, '*', 'kind', 'charge', 'charge', charge, 'model', model, 'images', images, 'at', whole(at))
redis.call('DEL', mark)
redis.call('HSET', mark, 'digest', digest, 'state', 'running', 'charge', charge, 'cost', images, 'turn', 1,
  'deadline', whole(at + lease), 'until', whole(at + window), 'repeatable', repeatable and 1 or 0)
redis.call('PEXPIRE', mark, whole(math.ceil((window + lease) / 1000)))  -- collects garbage; `until` decides
return answer('charged', charge, images, 1)
