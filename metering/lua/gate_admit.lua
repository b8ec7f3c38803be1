-- Decides requests of an API key one after the other, as if each had come alone, and charges those that are granted. Of a
-- refused request nothing is written, but that the clock was set back.
-- KEYS: key record, audit stream, slots of running requests, usage by day, then the marks of requests that may come again.
-- ARGV: lease and replay window in microseconds, then for each request: model, images, digest of the body, charge id, which of
-- the marks is its own, 0 if it cannot come again (it has no idempotency key): then its charge is all there is of it, and its
-- answer where it is at hand: a request that may come again is then kept as answered at once, and holds no slot.
-- Answers for each request {'unknown'} or {verdict, limits, ...}; limits are burst, burst left, microseconds until it is full,
-- rate, the same four of requests, concurrency and what is left of it, budget and budget left; '' where there is no limit,
-- nothing at all where there is none of any.
local record, audit, slots, usage = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease, window = tonumber(ARGV[1]), tonumber(ARGV[2])
local at = now()
local day = whole(math.floor(at / 86400000000))  -- since the epoch

local key = redis.call('HMGET', record, 'revoked', 'models', 'budget', 'spent', 'expires', 'concurrency',
  'rate', 'burst', 'arrival', 'request_rate', 'request_burst', 'request_arrival')
local known = key[1]
local budget, spent = tonumber(key[3]), tonumber(key[4])  -- nil where there is no limit
local models = known and key[2] ~= '' and cjson.decode(key[2])
local expires = key[5] and tonumber(key[5])  -- nil or false where it never does
local rounding = 0.5  -- microseconds: today's time leaves a float no finer

-- GCRA: `arrival` is when the burst is whole again; requests are granted while it is at most a burst ahead of now.
local function limiter(rate, burst, arrival, field)
  if not tonumber(rate) then return nil end
  local limit = {rate = rate, burst = tonumber(burst), field = field}
  limit.interval = 1000000 / tonumber(rate)  -- microseconds a unit
  limit.arrival = math.max(tonumber(arrival), at)  -- microseconds since the epoch
  local longest = at + limit.burst * limit.interval
  if limit.arrival > longest + 1 then
    -- the clock was set back: without this, the key would wait for as long as that
    limit.arrival = longest
    limit.moved = true
  end
  return limit
end
local of_images = known and limiter(key[7], key[8], key[9], 'arrival')
local of_requests = known and limiter(key[10] or nil, key[11], key[12], 'request_arrival')

-- Slots are leases: those of processes that died are over with their lease.
local concurrency, running = key[6] and tonumber(key[6]), 0  -- nil or false where there is no limit
if concurrency then running = redis.call('ZCOUNT', slots, '(' .. whole(at), '+inf') end

local function state(limit)
  if not limit then return '', '', '', '' end
  local left = math.floor((limit.burst * limit.interval - (limit.arrival - at) + rounding) / limit.interval)
  left = math.max(0, math.min(limit.burst, left))
  return whole(limit.burst), whole(left), whole(math.ceil(limit.arrival - at)), limit.rate
end

local function answer(verdict, ...)
  if not (of_images or of_requests or concurrency or budget) then return {verdict, {}, ...} end
  local limits = {'', '', '', '', '', '', '', '', '', '', '', ''}
  limits[1], limits[2], limits[3], limits[4] = state(of_images)
  limits[5], limits[6], limits[7], limits[8] = state(of_requests)
  if concurrency then
    limits[9] = whole(concurrency)
    limits[10] = whole(math.max(0, concurrency - running))
  end
  if budget then
    limits[11] = whole(budget)
    limits[12] = whole(budget - spent)
  end
  return {verdict, limits, ...}
end

-- How long the clients of a full key wait is not known: until an answer leaves, or a lease ends.
local function occupy(id)
  if not concurrency then return true end
  if running >= concurrency then return false end
  redis.call('ZREMRANGEBYSCORE', slots, '-inf', whole(at))
  redis.call('ZADD', slots, whole(at + lease), id)
  redis.call('PEXPIRE', slots, whole(math.ceil(2 * lease / 1000)))  -- collects garbage; the scores decide
  running = running + 1
  return true
end

local function wait(limit, units)
  return limit and limit.arrival + units * limit.interval - limit.burst * limit.interval - at or 0
end

local function advance(limit, units)
  if not limit then return end
  limit.arrival = limit.arrival + units * limit.interval
  limit.moved = true
end

local charges, charged, used = {}, 0, {}  -- of all requests; images, and those of each model

local function decide(model, images, digest, charge, mark, at_hand)
  if not known then return {'unknown'} end
  if known == '1' then return answer('revoked') end
  if expires and at >= expires then return answer('expired') end

  -- A request seen before was decided and charged once and for all.
  local seen = {}
  if mark then
    digest = model .. ' ' .. digest  -- the same body sent to another model is another request
    seen = redis.call('HMGET', mark, 'digest', 'state', 'charge', 'cost', 'deadline', 'until', 'answer')
  end
  if seen[1] and tonumber(seen[6]) > at then
    if seen[1] ~= digest then return answer('reused') end
    if seen[2] == 'running' and tonumber(seen[5]) > at then return answer('running', whole(tonumber(seen[5]) - at)) end
    if seen[7] then return answer('replayed', seen[3], seen[4], seen[7]) end
    -- its process died, or its answer was too large to keep: the charge stands, the answer is computed again
    if not occupy(seen[3]) then return answer('busy') end
    redis.call('HSET', mark, 'state', 'running', 'deadline', whole(at + lease))
    return answer('resumed', seen[3], seen[4], redis.call('HINCRBY', mark, 'turn', 1))
  end

  if models and not models[model] then return answer('forbidden') end
  if of_images and images > of_images.burst then return answer('large') end
  if budget and spent + images > budget then return answer('spent') end
  local longest = math.max(wait(of_images, images), wait(of_requests, 1))
  if longest > rounding then return answer('fast', whole(math.ceil(longest))) end
  local over = mark and at_hand ~= ''
  if over then
    if concurrency and running >= concurrency then return answer('busy') end
  elseif not occupy(charge) then
    return answer('busy')
  end

  advance(of_images, images)
  advance(of_requests, 1)
  spent = spent + images
  charged = charged + images
  used[model] = (used[model] or 0) + images
  charges[#charges + 1] = {charge, model, images}
  if concurrency and seen[3] then running = running - redis.call('ZREM', slots, seen[3]) end  -- its window is over
  if mark then
    redis.call('DEL', mark)
    redis.call('HSET', mark, 'digest', digest, 'state', 'running', 'charge', charge, 'cost', images, 'turn', 1, 'day', day,
      'deadline', whole(at + lease), 'until', whole(at + window))
    if over then redis.call('HSET', mark, 'state', 'done', 'answered', 1, 'answer', at_hand) end
    redis.call('PEXPIRE', mark, whole(math.ceil((window + lease) / 1000)))  -- collects garbage; `until` decides
  end
  return answer('charged', charge, images, 1, day)
end

local answers = {}
for first = 3, #ARGV, 6 do
  local images, place = tonumber(ARGV[first + 1]), tonumber(ARGV[first + 4])
  local mark = place > 0 and KEYS[4 + place]
  answers[#answers + 1] = decide(ARGV[first], images, ARGV[first + 2], ARGV[first + 3], mark, ARGV[first + 5])
end
for _, limit in ipairs({of_images or {}, of_requests or {}}) do
  if limit.moved then redis.call('HSET', record, limit.field, exact(limit.arrival)) end
end
if charged > 0 then redis.call('HINCRBY', record, 'spent', charged) end
for model, images in pairs(used) do
  redis.call('HINCRBY', usage, day .. ' ' .. model, images)
end
for _, each in ipairs(charges) do
  redis.call('XADD', audit, '*', 'kind', 'charge', 'charge', each[1], 'model', each[2], 'images', each[3], 'at', whole(at))
end
return answers
