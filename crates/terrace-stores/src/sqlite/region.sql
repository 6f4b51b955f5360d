-- What a file has that is one of several regions. `{region}` is its number, which its versions carry.
-- Made anew at each start, after the log.
DROP TRIGGER IF EXISTS commands_inserted;
DROP TRIGGER IF EXISTS commands_updated;
DROP TRIGGER IF EXISTS records_inserted;
DROP TRIGGER IF EXISTS records_updated;
DROP TRIGGER IF EXISTS records_renamed;
DROP TRIGGER IF EXISTS records_removed;

-- The changes of this region, with what they replaced. Whoever brings rows of other regions sets the
-- counter below zero for the length of its transaction: those are not logged. A row that is inserted
-- has in `seen` what it replaced: the horizon of collected deletions, or a row that a person removed.
CREATE TRIGGER commands_inserted AFTER INSERT ON records
    WHEN NEW.version > (SELECT value FROM meta WHERE name = 'version')
        AND NEW.version < 9007199254740992
        AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    INSERT INTO commands (position, type, key, value, version, created_at, time, replaced)
    VALUES (NEW.version,
        CASE WHEN NEW.deleted THEN 'RecordDeleted' ELSE 'RecordCreated' END,
        NEW.key, CASE WHEN NEW.deleted THEN NULL ELSE NEW.value END,
        NEW.version, NEW.created_at, NEW.updated_at,
        (SELECT ifnull(max(value), 0) FROM json_each(NEW.seen)));
END;

CREATE TRIGGER commands_updated AFTER UPDATE ON records
    WHEN NEW.version <> OLD.version
        AND NEW.version >= (SELECT value FROM meta WHERE name = 'version')
        AND NEW.version < 9007199254740992
        AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    INSERT INTO commands (position, type, key, value, version, created_at, time, replaced)
    VALUES (NEW.version,
        CASE WHEN NEW.deleted THEN 'RecordDeleted'
            WHEN OLD.deleted OR OLD.version <= 0 THEN 'RecordCreated' ELSE 'RecordUpdated' END,
        NEW.key, CASE WHEN NEW.deleted THEN NULL ELSE NEW.value END,
        NEW.version, NEW.created_at, NEW.updated_at,
        CASE WHEN OLD.version > 0 THEN OLD.version
            ELSE (SELECT ifnull(max(value), 0) FROM json_each(NEW.seen)) END);
END;

-- What people do to rows draws a version of this region by SQLite's clock.
CREATE TRIGGER records_inserted AFTER INSERT ON records
    WHEN (SELECT value FROM meta WHERE name = 'version') >= 0
        AND (NEW.version <= (SELECT value FROM meta WHERE name = 'version')
            OR NEW.version & 63 <> {region})
BEGIN
    UPDATE meta SET value = {next} WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version')
        WHERE key = NEW.key;
END;

CREATE TRIGGER records_updated AFTER UPDATE OF key, value, deleted ON records
    WHEN (SELECT value FROM meta WHERE name = 'version') >= 0
        AND (NEW.version <= max((SELECT value FROM meta WHERE name = 'version'),
                CASE WHEN OLD.version < 9007199254740992 THEN OLD.version ELSE 0 END)
            OR NEW.version & 63 <> {region})
BEGIN
    UPDATE meta SET value = {next} WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version'),
        updated_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000,
        seen = json_insert(OLD.seen, '$[#]', OLD.version)
        WHERE key = NEW.key;
END;

CREATE TRIGGER records_renamed AFTER UPDATE OF key ON records WHEN NEW.key <> OLD.key
BEGIN
    INSERT INTO records (key, value, deleted, seen)
    VALUES (OLD.key, '', 1, json_insert(OLD.seen, '$[#]', OLD.version));
END;

CREATE TRIGGER records_removed AFTER DELETE ON records
    WHEN OLD.deleted = 0 AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    INSERT INTO records (key, value, deleted, seen)
    VALUES (OLD.key, '', 1, json_insert(OLD.seen, '$[#]', OLD.version));
END;
