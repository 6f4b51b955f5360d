-- A row may have been given a version by hand that none can follow. It stops no other row: versions
-- from 2^53 on, which Terrace never draws, do not count.
DROP TRIGGER records_inserted;
DROP TRIGGER records_updated;

CREATE TRIGGER records_inserted AFTER INSERT ON records
    WHEN NEW.version <= (SELECT value FROM meta WHERE name = 'version')
BEGIN
    UPDATE meta SET value = max(value,
            (SELECT ifnull(max(version), 0) FROM records WHERE version < 9007199254740992)) + 1
        WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version')
        WHERE key = NEW.key;
END;

CREATE TRIGGER records_updated AFTER UPDATE OF key, value, deleted ON records
    WHEN NEW.version <= max((SELECT value FROM meta WHERE name = 'version'),
        CASE WHEN OLD.version < 9007199254740992 THEN OLD.version ELSE 0 END)
BEGIN
    UPDATE meta SET value = max(value,
            (SELECT ifnull(max(version), 0) FROM records WHERE version < 9007199254740992)) + 1
        WHERE name = 'version';
    UPDATE records SET version = (SELECT value FROM meta WHERE name = 'version'),
        updated_at = CAST(ROUND((julianday('now') - 2440587.5) * 86400000.0) AS INTEGER) * 1000
        WHERE key = NEW.key;
END;
