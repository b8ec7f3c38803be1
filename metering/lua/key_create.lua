-- Stores a new API key. KEYS: key record, index of all keys. ARGV: id, record as a JSON object of strings.
redis.call('HSET', KEYS[1], 'created', whole(now()))
set_fields(KEYS[1], ARGV[2])
redis.call('SADD', KEYS[2], ARGV[1])
return 1
