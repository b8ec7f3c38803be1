-- Ends a granted request that may come again, once: frees its slot, and keeps its answer for replay or gives its images back.
-- KEYS: key record, mark of the request, audit stream, slots of running requests, usage by day.
-- ARGV: outcome ('answered' or 'refunded'), charge id, model, turn, answer ('' when it is not to be kept).
-- Answers 1, or 0 when the request is not this turn's any more: then no answer may leave, and nothing is given back.
local mark, slots = KEYS[2], KEYS[4]
local outcome, charge, model, turn, answer = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local held = redis.call('HMGET', mark, 'charge', 'turn', 'state', 'cost', 'answered', 'day')
if held[1] ~= charge or held[2] ~= turn or held[3] ~= 'running' then return 0 end
redis.call('ZREM', slots, charge)
if outcome == 'answered' then
  redis.call('HSET', mark, 'state', 'done', 'answered', 1)
  if answer ~= '' then redis.call('HSET', mark, 'answer', answer) end
elseif held[5] then  -- an earlier turn answered: what it delivered stays charged
  redis.call('HSET', mark, 'state', 'done')
else
  give_back(KEYS[1], KEYS[3], KEYS[5], charge, model, held[4], held[6])
  redis.call('DEL', mark)
end
return 1
