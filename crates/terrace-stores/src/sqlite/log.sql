-- Every change of `records`, also what people change by hand. A position is the version written, and
-- where a row came with a lower version of its own, the next number: positions only rise. A row that is
-- changed, renamed or deleted by hand gets a new version, or leaves a tombstone that has one, by the
-- triggers of `records`: what is logged is that. What is copied from another file, which turns the counter
-- below zero, is a change of that one.
CREATE TABLE IF NOT EXISTS commands (
    position      INTEGER PRIMARY KEY NOT NULL,
    "transaction" INTEGER NOT NULL DEFAULT 0,
    type          TEXT NOT NULL,
    key           TEXT NOT NULL,
    value         TEXT,
    version       INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    time          INTEGER NOT NULL
) STRICT;

-- Made anew at each start: an earlier Terrace logged versions that none can follow, from 2^53 on.
DROP TRIGGER IF EXISTS commands_inserted;
DROP TRIGGER IF EXISTS commands_updated;

CREATE TRIGGER commands_inserted AFTER INSERT ON records
    WHEN NEW.version > (SELECT value FROM meta WHERE name = 'version')
        AND NEW.version < 9007199254740992
        AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    INSERT INTO commands (position, type, key, value, version, created_at, time)
    VALUES (max(NEW.version, (SELECT ifnull(max(position), 0) + 1 FROM commands)),
        CASE WHEN NEW.deleted THEN 'RecordDeleted' ELSE 'RecordCreated' END,
        NEW.key, CASE WHEN NEW.deleted THEN NULL ELSE NEW.value END,
        NEW.version, NEW.created_at, NEW.updated_at);
END;

CREATE TRIGGER commands_updated AFTER UPDATE ON records
    WHEN NEW.version <> OLD.version
        AND NEW.version >= (SELECT value FROM meta WHERE name = 'version')
        AND NEW.version < 9007199254740992
        AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    INSERT INTO commands (position, type, key, value, version, created_at, time)
    VALUES (max(NEW.version, (SELECT ifnull(max(position), 0) + 1 FROM commands)),
        CASE WHEN NEW.deleted THEN 'RecordDeleted'
            WHEN OLD.deleted OR OLD.version <= 0 THEN 'RecordCreated' ELSE 'RecordUpdated' END,
        NEW.key, CASE WHEN NEW.deleted THEN NULL ELSE NEW.value END,
        NEW.version, NEW.created_at, NEW.updated_at);
END;
