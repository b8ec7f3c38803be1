-- Takes away the marks of requests that ended and cannot come again; of one API key.
-- KEYS: the marks.
for _, mark in ipairs(KEYS) do
  redis.call('DEL', mark)
end
return 1
