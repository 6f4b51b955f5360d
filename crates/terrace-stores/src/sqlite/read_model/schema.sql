-- A read model: one file of its own. Times are microseconds since 1970 UTC.
CREATE TABLE IF NOT EXISTS projection (
    name         TEXT PRIMARY KEY NOT NULL,
    source       TEXT NOT NULL DEFAULT '',
    epoch        INTEGER NOT NULL DEFAULT 0,
    place        INTEGER NOT NULL DEFAULT 0,
    paused_until INTEGER NOT NULL DEFAULT 0,
    whole        INTEGER NOT NULL DEFAULT 0
) STRICT;
INSERT OR IGNORE INTO projection (name) VALUES ('live'), ('next');

CREATE TABLE IF NOT EXISTS records (
    id          INTEGER PRIMARY KEY NOT NULL,
    key         TEXT UNIQUE NOT NULL COLLATE BINARY,
    value       TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    read_count  INTEGER NOT NULL DEFAULT 0,
    write_count INTEGER NOT NULL DEFAULT 0,
    version     INTEGER NOT NULL,
    deleted     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS parked (
    key        TEXT PRIMARY KEY NOT NULL,
    epoch      INTEGER NOT NULL,
    place      INTEGER NOT NULL,
    commands   INTEGER NOT NULL,
    reason     TEXT NOT NULL,
    value      TEXT NOT NULL,
    version    INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    updated_at INTEGER NOT NULL,
    deleted    INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS activity (
    minute INTEGER PRIMARY KEY NOT NULL,
    writes INTEGER NOT NULL
) STRICT;

-- The next projection of a rebuild.
CREATE TABLE IF NOT EXISTS records_next (
    id          INTEGER PRIMARY KEY NOT NULL,
    key         TEXT UNIQUE NOT NULL COLLATE BINARY,
    value       TEXT NOT NULL,
    created_at  INTEGER NOT NULL,
    updated_at  INTEGER NOT NULL,
    read_count  INTEGER NOT NULL DEFAULT 0,
    write_count INTEGER NOT NULL DEFAULT 0,
    version     INTEGER NOT NULL,
    deleted     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS parked_next AS SELECT * FROM parked WHERE 0;
CREATE UNIQUE INDEX IF NOT EXISTS parked_next_key ON parked_next (key);
CREATE TABLE IF NOT EXISTS activity_next (
    minute INTEGER PRIMARY KEY NOT NULL,
    writes INTEGER NOT NULL
) STRICT;

CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(
    key, value, content = 'records', content_rowid = 'id');
CREATE TRIGGER IF NOT EXISTS words_inserted AFTER INSERT ON records BEGIN
    INSERT INTO words (rowid, key, value) VALUES (NEW.id, NEW.key, NEW.value);
END;
CREATE TRIGGER IF NOT EXISTS words_deleted AFTER DELETE ON records BEGIN
    INSERT INTO words (words, rowid, key, value) VALUES ('delete', OLD.id, OLD.key, OLD.value);
END;
CREATE TRIGGER IF NOT EXISTS words_updated AFTER UPDATE OF key, value ON records
    WHEN NEW.value <> OLD.value OR NEW.key <> OLD.key BEGIN
    INSERT INTO words (words, rowid, key, value) VALUES ('delete', OLD.id, OLD.key, OLD.value);
    INSERT INTO words (rowid, key, value) VALUES (NEW.id, NEW.key, NEW.value);
END;
