-- Times are microseconds since 1970 UTC; amounts are hundredths.
CREATE TABLE IF NOT EXISTS transactions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    user_id TEXT NOT NULL CHECK (typeof(user_id) = 'text'
        AND length(user_id) BETWEEN 1 AND 255 AND instr(user_id, char(0)) = 0),
    amount_cents INTEGER NOT NULL
        CHECK (typeof(amount_cents) = 'integer' AND abs(amount_cents) <= 9999999999),
    transaction_type TEXT NOT NULL CHECK (typeof(transaction_type) = 'text'
        AND length(transaction_type) BETWEEN 1 AND 50 AND instr(transaction_type, char(0)) = 0),
    created_at INTEGER NOT NULL DEFAULT (CAST(unixepoch('subsec') * 1000000 AS INTEGER))
        CHECK (typeof(created_at) = 'integer')
);
CREATE INDEX IF NOT EXISTS transactions_pages ON transactions (user_id, created_at, id);
