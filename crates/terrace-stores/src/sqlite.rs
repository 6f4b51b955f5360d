//! Records in one SQLite file: the embedded default, with nothing to install.
//!
//! One thread writes and commits for everybody who waits (group commit: one fsync for many callers),
//! a few threads read, each on a connection of its own, in the write-ahead log's snapshots. SQLite
//! has one writer at a time anyway; a queue before it is fair where its file lock is not.
//!
//! # The file
//! Three tables, open to any SQLite tool while Terrace runs:
//! - `records(key, value, version, created_at, updated_at, deleted)`: times are microseconds since
//!   1970 UTC; a deleted record stays as a tombstone with an empty value until it is collected. A
//!   row may be inserted by hand with `key` and `value` alone, and triggers draw the version of
//!   rows that are inserted, changed, renamed or removed by hand. Keys order by their bytes. In the
//!   order of their versions they are the change log ([`SqliteChangeLog`]).
//! - `meta(name, value)`: the name of this history, the counter that versions are drawn from, and how
//!   far the file has followed others. The counter is that of the whole database, so versions grow
//!   for a key even when its row was removed.
//! - `idempotency(key, fingerprint, result, created_at)`: first results of repeatable requests.
//!
//! A ledger adds `transactions` ([`SqliteLedger`]).
//!
//! A file that is one of several regions has more columns, and the table `conflicts`; the changes that
//! it made itself are in `commands`. See [`SqliteOptions::region`].
//!
//! `records` is a plain rowid table. `WITHOUT ROWID` would save a descent for short values, but it
//! keeps whole rows in the interior pages of its tree, and values here go up to 1 MiB (SQLite manual,
//! "Clustered Indexes and the WITHOUT ROWID Optimization", section 4).
//!
//! # Durability
//! Receipts say `committed` only when SQLite itself answers that it uses the write-ahead log with
//! `synchronous=FULL`: then COMMIT returns after fsync. On file systems that cannot keep such a log
//! (network mounts) and under [`Synchronous::Normal`] they say `accepted`, and so does the
//! inspection.

mod apply;
mod backup;
mod change_log;
pub(crate) mod connect;
mod documents;
pub(crate) mod failure;
pub(crate) mod file_identity;
mod follow;
mod health;
mod idempotency;
mod job;
mod lane;
mod ledger;
mod log;
mod options;
mod read_model;
mod reader;
mod region;
mod rollup;
mod schema;
mod shard;
mod shared;
mod store;
mod vitals;
mod words;
mod writer;

pub use backup::SqliteBackup;
pub use change_log::SqliteChangeLog;
pub use documents::SqliteDocuments;
pub use follow::SqliteFollower;
pub use ledger::SqliteLedger;
pub use log::SqliteLog;
pub use options::{Connections, SqliteOptions, Synchronous};
pub use read_model::SqliteReadModel;
pub use shard::SqliteShard;
pub use store::SqliteStore;
