//! What a snapshot of the server proves, and how it comes over the wire.

use terrace_core::{Generation, LogPosition, Outcome, Position, Version};
use tokio_postgres::types::{FromSql, Type};

/// The bits of a position that are a transaction id; those above count restarts of the server.
const TRANSACTION_BITS: u32 = 48;

/// A restart raises the generation by this much, so its upper half counts restarts.
pub(super) const RESTART: u64 = 1 << 32;

/// How often the server was restarted under this history.
fn restarts(generation: Generation) -> u64 {
    generation.get() / RESTART
}

/// The position of a transaction of the run of the server that has this generation.
pub(super) fn position(transaction: u64, generation: Generation) -> Position {
    let most = (1 << (u64::BITS - TRANSACTION_BITS)) - 1;
    let restarts = restarts(generation).min(most);
    Position::new(restarts << TRANSACTION_BITS | transaction)
}

/// The transaction at a position. Of committed ones none has the id of another, whatever was restarted.
pub(super) fn transaction(position: Position) -> u64 {
    position.get() & ((1 << TRANSACTION_BITS) - 1)
}

type Decoded<T> = Result<T, Box<dyn std::error::Error + Sync + Send>>;

/// A `pg_snapshot`, without the transactions that are under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Snapshot {
    /// Every transaction before it has ended.
    xmin: u64,
    /// No transaction from it on had ended.
    xmax: u64,
}

impl Snapshot {
    /// Everything up to here is visible, or has failed.
    pub(super) fn through(self, generation: Generation) -> Position {
        position(self.xmin.saturating_sub(1), generation)
    }

    /// Whether a write at this position can have been acknowledged by this server.
    pub(super) fn has_heard_of(self, position: Position, generation: Generation) -> bool {
        position < self::position(self.xmax, generation)
    }

    /// The whole number of the transaction that wrote a visible row. Of a row that is older than 2^31
    /// transactions it may be a later one, which asks for more than is needed.
    pub(super) fn written_by(self, Xid(row): Xid, generation: Generation) -> Position {
        let behind = low(self.xmax).wrapping_sub(row);
        position(self.xmax.saturating_sub(u64::from(behind)), generation)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the low half is what a row keeps")]
fn low(number: u64) -> u32 {
    number as u32
}

impl<'a> FromSql<'a> for Snapshot {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Decoded<Self> {
        // The number of transactions under way, both ends, and those transactions.
        let number = |from: usize| -> Decoded<u64> {
            let bytes = raw.get(from..from + 8).ok_or("a snapshot is too short")?;
            Ok(u64::from_be_bytes(bytes.try_into()?))
        };
        Ok(Self { xmin: number(4)?, xmax: number(12)? })
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::PG_SNAPSHOT
    }
}

/// The system column `xmin`: the low half of the number of the transaction that wrote a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Xid(u32);

impl<'a> FromSql<'a> for Xid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Decoded<Self> {
        Ok(Self(u32::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::XID
    }
}

/// The number of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Transaction(pub(super) u64);

impl<'a> FromSql<'a> for Transaction {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Decoded<Self> {
        Ok(Self(u64::from_be_bytes(raw.try_into()?)))
    }

    fn accepts(column: &Type) -> bool {
        *column == Type::XID8
    }
}

/// The place in the change log of a write in a transaction that is logged.
pub(super) fn event(
    outcome: Outcome,
    version: Version,
    logged: Option<Transaction>,
) -> Option<LogPosition> {
    let Transaction(epoch) = logged.filter(|_| outcome.is_applied())?;
    Some(LogPosition { epoch, offset: version.get() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_proves_what_has_ended() {
        let mut raw = 1_u32.to_be_bytes().to_vec();
        for number in [700_u64, 705, 700] {
            raw.extend(number.to_be_bytes());
        }
        let snapshot = Snapshot::from_sql(&Type::PG_SNAPSHOT, &raw).unwrap();
        let first = Generation::new(3);
        assert_eq!(snapshot.through(first), Position::new(699));
        assert!(snapshot.has_heard_of(Position::new(704), first));
        assert!(!snapshot.has_heard_of(Position::new(705), first));
        assert!(Snapshot::from_sql(&Type::PG_SNAPSHOT, &raw[..15]).is_err());
    }

    /// A crash gives ids out again of which nothing was on disk.
    #[test]
    fn what_was_proved_before_a_restart_proves_nothing_after_it() {
        let (before, after) = (Generation::new(7), Generation::new((1 << 32) + 1));
        let (proved, again) =
            (Snapshot { xmin: 3730, xmax: 3730 }, Snapshot { xmin: 3598, xmax: 3600 });
        let token = position(3601, after);
        assert!(proved.through(before) < token);
        assert!(
            proved.through(before) < again.through(after),
            "whatever was acknowledged is there"
        );
        assert_eq!(transaction(token), 3601);
        assert!(position(1, Generation::new(u64::MAX)) > token);
    }

    #[test]
    fn the_writer_of_a_row_is_the_last_with_its_low_half() {
        let (wrap, first) = (1 << 32, Generation::new(1));
        let snapshot = Snapshot { xmin: wrap + 5, xmax: wrap + 10 };
        assert_eq!(snapshot.written_by(Xid(9), first), Position::new(wrap + 9));
        assert_eq!(snapshot.written_by(Xid(u32::MAX), first), Position::new(wrap - 1));
        let young = Snapshot { xmin: 5, xmax: 5 };
        assert_eq!(young.written_by(Xid(4), first), Position::new(4));
        assert_eq!(young.written_by(Xid(2), first), Position::new(2), "frozen at the beginning");
    }
}
