-- The last write of a journal that was applied to a row.
ALTER TABLE records ADD COLUMN seq INTEGER NOT NULL DEFAULT 0;
