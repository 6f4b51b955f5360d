\set id random(1000001, 1000000 + :keys)
SELECT key, value, version, created_at, updated_at FROM records
  WHERE key = :id AND NOT deleted;
