-- The words of each document, as Terrace finds them when it writes; `unindexed` has the keys whose
-- document came by another way, which are looked through by every search until the next start.
CREATE TABLE IF NOT EXISTS words (
    key  TEXT NOT NULL,
    word TEXT NOT NULL,
    PRIMARY KEY (key, word)
) STRICT, WITHOUT ROWID;

CREATE INDEX IF NOT EXISTS words_word ON words (word, key);

CREATE TABLE IF NOT EXISTS unindexed (key TEXT PRIMARY KEY NOT NULL) STRICT, WITHOUT ROWID;

-- These run for what people do by hand: Terrace draws versions past the counter.
CREATE TRIGGER IF NOT EXISTS words_inserted AFTER INSERT ON records
    WHEN NEW.version <= (SELECT value FROM meta WHERE name = 'version')
BEGIN
    SELECT RAISE(ABORT, 'the value of a document must be a JSON object')
        WHERE NEW.deleted = 0
            AND CASE WHEN json_valid(NEW.value) THEN json_type(NEW.value) END IS NOT 'object';
    DELETE FROM words WHERE key = NEW.key;
    INSERT OR REPLACE INTO unindexed (key) VALUES (NEW.key);
END;

CREATE TRIGGER IF NOT EXISTS words_updated AFTER UPDATE OF key, value, deleted ON records
    WHEN NEW.version <= max((SELECT value FROM meta WHERE name = 'version'),
        CASE WHEN OLD.version < 9007199254740992 THEN OLD.version ELSE 0 END)
BEGIN
    SELECT RAISE(ABORT, 'the value of a document must be a JSON object')
        WHERE NEW.deleted = 0
            AND CASE WHEN json_valid(NEW.value) THEN json_type(NEW.value) END IS NOT 'object';
    DELETE FROM words WHERE key IN (OLD.key, NEW.key);
    INSERT OR REPLACE INTO unindexed (key) VALUES (NEW.key);
END;

CREATE TRIGGER IF NOT EXISTS words_removed AFTER DELETE ON records
BEGIN
    DELETE FROM words WHERE key = OLD.key;
    DELETE FROM unindexed WHERE key = OLD.key;
END;
