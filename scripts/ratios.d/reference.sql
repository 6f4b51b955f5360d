-- The reference's table: the shape of Terrace's records, filled with the same keys and values. Its
-- version counts up in the row, which costs the reference less than Terrace's sequence.
CREATE TABLE records (
  key text COLLATE "C" PRIMARY KEY,
  value text NOT NULL,
  version bigint NOT NULL,
  created_at timestamptz NOT NULL,
  updated_at timestamptz NOT NULL,
  deleted boolean NOT NULL DEFAULT false
) WITH (fillfactor = 80);
INSERT INTO records
  SELECT key::text, 'value-of-key-' || key, 1, now(), now()
  FROM generate_series(1000001, 1000000 + :keys) AS key;
VACUUM ANALYZE records;
