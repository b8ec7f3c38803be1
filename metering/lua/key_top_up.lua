-- Adds images to a key's budget. KEYS: key record. ARGV: images, the largest budget there may be.
-- Answers 'topped', 'unknown', 'unlimited' or 'large'; all but the first change nothing.
local budget = redis.call('HGET', KEYS[1], 'budget')
if not budget then return 'unknown' end
if budget == '' then return 'unlimited' end
if tonumber(budget) + tonumber(ARGV[1]) > tonumber(ARGV[2]) then return 'large' end
redis.call('HINCRBY', KEYS[1], 'budget', ARGV[1])
return 'topped'
