-- Records in the order of their versions are the change log of the file: one writer draws versions
-- and commits, so their order is that of commits, and deleted records stay as tombstones.
CREATE INDEX records_version ON records (version);

-- The latest tombstone that was collected: who has not followed to here may have missed it.
INSERT INTO meta (name, value) VALUES ('floor', 0);

-- Whatever people do to rows is a change with a version past all others. Who follows another file
-- sets the counter below zero for the length of its transaction, which turns these off: its rows
-- bring their versions.
DROP TRIGGER records_inserted;
DROP TRIGGER records_updated;

CREATE TRIGGER records_inserted AFTER INSERT ON records
    WHEN NEW.version <= (SELECT value FROM meta WHERE name = 'version')
BEGIN
    UPDATE meta SET value = max(value, (SELECT max(version) FROM records)) + 1
        WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version')
        WHERE key = NEW.key;
END;

CREATE TRIGGER records_updated AFTER UPDATE OF key, value, deleted ON records
    WHEN NEW.version <= max(OLD.version, (SELECT value FROM meta WHERE name = 'version'))
BEGIN
    UPDATE meta SET value = max(value, (SELECT max(version) FROM records)) + 1
        WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version'),
        updated_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000
        WHERE key = NEW.key;
END;

CREATE TRIGGER records_renamed AFTER UPDATE OF key ON records WHEN NEW.key <> OLD.key
BEGIN
    INSERT INTO records (key, value, deleted) VALUES (OLD.key, '', 1);
END;

CREATE TRIGGER records_removed AFTER DELETE ON records
    WHEN OLD.deleted = 0 AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    INSERT INTO records (key, value, deleted) VALUES (OLD.key, '', 1);
END;

CREATE TRIGGER records_collected AFTER DELETE ON records
    WHEN OLD.deleted = 1 AND (SELECT value FROM meta WHERE name = 'version') >= 0
BEGIN
    UPDATE meta SET value = max(value, OLD.version) WHERE name = 'floor';
END;
