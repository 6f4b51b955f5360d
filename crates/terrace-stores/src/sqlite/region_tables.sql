-- Which versions of the key have arrived, of each region, beside the row's own.
ALTER TABLE records ADD COLUMN seen TEXT NOT NULL DEFAULT '[]';

-- The first version that a request wrote: its result travels with that change.
ALTER TABLE idempotency ADD COLUMN version INTEGER;
CREATE INDEX idempotency_version ON idempotency (version) WHERE version IS NOT NULL;

-- Updates that were lost to one of another region; with `awaited`, versions that were replaced before
-- they have arrived, which are no losses.
CREATE TABLE conflicts (
    key        TEXT NOT NULL COLLATE BINARY,
    version    INTEGER NOT NULL,
    awaited    INTEGER NOT NULL CHECK (awaited IN (0, 1)),
    winner     INTEGER NOT NULL,
    digest     BLOB,
    noticed_at INTEGER NOT NULL,
    PRIMARY KEY (key, version)
) STRICT, WITHOUT ROWID;

CREATE INDEX conflicts_noticed_at ON conflicts (noticed_at);

-- The horizon up to which deletions were collected.
INSERT OR REPLACE INTO meta (name, value) VALUES ('collected', 0);
