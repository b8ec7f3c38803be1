-- Ends a granted request that cannot come again: frees its slot, and gives its images back if it was not answered.
-- KEYS: key record, mark of the request, audit stream, slots of running requests, usage by day.
-- ARGV: outcome ('answered' or 'refunded'), charge id, model, images, day of the charge, microseconds.
-- Its mark, of which there is none until then, lets it give back once however often it is called in that time.
local outcome, charge, model, images, day = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
redis.call('ZREM', KEYS[4], charge)
if outcome == 'refunded' and redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('SET', KEYS[2], 'refunded', 'PX', whole(math.ceil(tonumber(ARGV[6]) / 1000)))
  give_back(KEYS[1], KEYS[3], KEYS[5], charge, model, images, day)
end
return 1
