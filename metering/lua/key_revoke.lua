-- Ends a key for good, on record the first time. KEYS: key record, audit stream. Answers 1, or 0 when there is no such key.
local revoked = redis.call('HGET', KEYS[1], 'revoked')
if not revoked then return 0 end
if revoked ~= '1' then
  redis.call('HSET', KEYS[1], 'revoked', 1)
  redis.call('XADD', KEYS[2], '*', 'kind', 'revoke', 'images', 0, 'at', whole(now()))
end
return 1
