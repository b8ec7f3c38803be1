-- Ends a granted request, once: frees its slot, and keeps its answer for replay or gives its images back.
-- KEYS: key record, mark of the request, audit stream, slots of running requests, usage by day.
-- ARGV: outcome ('answered' or 'refunded'), charge id, turn, model, answer ('' when it is not to be kept).
-- Answers 1, or 0 when the request is not this turn's any more: then no answer may leave, and nothing is given back.
local record, mark, audit, slots, usage = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local outcome, charge, turn, model, answer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local held = redis.call('HMGET', mark, 'charge', 'turn', 'state', 'cost', 'answered', 'repeatable', 'day')
if held[1] ~= charge or held[2] ~= turn or held[3] ~= 'running' then return 0 end
redis.call('ZREM', slots, charge)
if outcome == 'answered' and held[6] == '1' then
  redis.call('HSET', mark, 'state', 'done', 'answered', 1)
  if answer ~= '' then redis.call('HSET', mark, 'answer', answer) end
  return 1
end
if outcome == 'refunded' then
  if held[5] then  -- an earlier turn answered: what it delivered stays charged
    redis.call('HSET', mark, 'state', 'done')
    return 1
  end
  redis.call('HINCRBY', record, 'spent', -held[4])
  redis.call('HINCRBY', usage, held[7] .. ' ' .. model, -held[4])
  redis.call('XADD', audit, '*', 'kind', 'refund', 'charge', charge, 'model', model, 'images', held[4], 'at', whole(now()))
end
redis.call('DEL', mark)
return 1
