-- Trims an event stream to its newest entries, and notes the last one deleted.
-- KEYS: stream, record. ARGV: entries to keep, and how many more than these are waited for. Answers how many were deleted.
local length, keep = redis.call('XLEN', KEYS[1]), tonumber(ARGV[1])
if length <= keep + tonumber(ARGV[2]) then
  return 0
end
local deleted = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', length - keep)
redis.call('HSET', KEYS[2], 'trimmed', deleted[#deleted][1])
return redis.call('XTRIM', KEYS[1], 'MAXLEN', keep)
