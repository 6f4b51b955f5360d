-- Times are integers: microseconds since 1970-01-01T00:00:00Z. Hand-made rows get milliseconds,
-- written so that SQLite versions before 3.42 (without 'subsec') can insert, too.
CREATE TABLE records (
    key        TEXT PRIMARY KEY NOT NULL COLLATE BINARY
               CHECK (length(key) BETWEEN 1 AND 255 AND instr(key, char(0)) = 0),
    value      TEXT NOT NULL,
    version    INTEGER NOT NULL DEFAULT 0,
    created_at INTEGER NOT NULL
               DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    updated_at INTEGER NOT NULL
               DEFAULT (CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000),
    deleted    INTEGER NOT NULL DEFAULT 0 CHECK (deleted IN (0, 1))
) STRICT;

-- Finds old tombstones without a walk over the records.
CREATE INDEX records_deleted ON records (updated_at) WHERE deleted = 1;

CREATE TABLE meta (
    name  TEXT PRIMARY KEY NOT NULL,
    value ANY NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (name, value) VALUES ('version', 0);

CREATE TABLE idempotency (
    key         TEXT PRIMARY KEY NOT NULL,
    fingerprint BLOB NOT NULL,
    result      TEXT NOT NULL,
    created_at  INTEGER NOT NULL
) STRICT;

CREATE INDEX idempotency_created_at ON idempotency (created_at);

-- Terrace draws versions itself; these two draw one for rows that people insert or change.
CREATE TRIGGER records_inserted AFTER INSERT ON records WHEN NEW.version <= 0
BEGIN
    UPDATE meta SET value = value + 1 WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version')
        WHERE key = NEW.key;
END;

CREATE TRIGGER records_updated AFTER UPDATE OF key, value, deleted ON records
    WHEN NEW.version = OLD.version
BEGIN
    UPDATE meta SET value = max(value, OLD.version) + 1 WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version'),
        updated_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000
        WHERE key = NEW.key;
END;
