\set id random(1000001, 1000000 + :keys)
INSERT INTO records (key, value, version, created_at, updated_at, deleted)
  VALUES (:id, :value, 1, now(), now(), false)
  ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = records.version + 1,
    updated_at = now(), deleted = false;
