//! The tables of a read model in a file, and whose file it is.

use rusqlite::{Connection, TransactionBehavior};
use terrace_core::Result;

use super::super::{failure, schema};

/// `PRAGMA application_id`: "TerR" in ASCII.
const APPLICATION: i32 = 0x5465_7252;

/// What a projection fills.
const PROJECTED: [&str; 3] = ["records", "parked", "activity"];

const EARLIER: &str = "SELECT count(*) = 5 FROM pragma_table_info('projection')
    WHERE name IN ('name', 'source', 'epoch', 'place', 'paused_until')";
const HAS_WHOLE: &str =
    "SELECT count(*) = 1 FROM pragma_table_info('projection') WHERE name = 'whole'";

/// Refuses a file that is no read model, before anything in it is changed. Earlier ones are known by
/// their checkpoints.
pub(super) fn examine(connection: &Connection) -> Result<()> {
    let known = match schema::ask::<i32>(connection, "PRAGMA application_id")? {
        APPLICATION => true,
        0 => schema::is_empty(connection)? || schema::ask(connection, EARLIER)?,
        _ => false,
    };
    if known { Ok(()) } else { Err(schema::foreign()) }
}

/// Makes what is missing. What a projection has lost it makes again from the beginning of its log.
pub(super) fn make(connection: &mut Connection) -> Result<()> {
    let failed = |error| failure::of(error).during("open");
    let transaction =
        connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    // Once more under the lock: another process may have come first.
    examine(&transaction)?;
    let lost = schema::lost(&transaction, &PROJECTED)?.is_some();
    let is_earlier = schema::ask(&transaction, EARLIER)? && !schema::ask(&transaction, HAS_WHOLE)?;
    if is_earlier {
        // Whether an earlier Terrace had come to the end is not known: the next change tells.
        let add = "ALTER TABLE projection ADD COLUMN whole INTEGER NOT NULL DEFAULT 0";
        transaction.execute_batch(add).map_err(failed)?;
    }
    let lost_words = schema::lost(&transaction, &["words"])?.is_some();
    transaction.execute_batch(include_str!("schema.sql")).map_err(failed)?;
    if lost_words {
        let index = "INSERT INTO words (words) VALUES ('rebuild')";
        transaction.execute_batch(index).map_err(failed)?;
    }
    if lost {
        let begin = "UPDATE projection SET source = '', epoch = 0, place = 0, whole = 0 \
             WHERE name = 'live'";
        transaction.execute_batch(begin).map_err(failed)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION).map_err(failed)?;
    transaction.commit().map_err(failed)
}
