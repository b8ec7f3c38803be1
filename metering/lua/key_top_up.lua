-- Adds images to a key's budget, on record. KEYS: key record, audit stream. ARGV: images, the largest budget there may be.
-- Answers 'topped', 'unknown', 'unlimited' or 'large'; all but the first change nothing.
local budget = redis.call('HGET', KEYS[1], 'budget')
if not budget then return 'unknown' end
if budget == '' then return 'unlimited' end
if tonumber(budget) + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return 'large' end
redis.call('HINCRBY', KEYS[1], 'budget', ARGV[1])
redis.call('XADD', KEYS[2], '*', 'kind', 'top-up', 'images', ARGV[1], 'at', whole(now()))
return 'topped'
