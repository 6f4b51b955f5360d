//! Each call of the port, as statements.

use std::collections::BTreeMap;
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, ToSql, params};
use terrace_core::{
    Appended, DeadLetter, Idempotency, JournalEntry, Progress, Result, Sequence, Settled, Span,
};

use super::Shared;
use crate::journal::{self, Chunk, Packed, corrupt};
use crate::sqlite::failure;

/// Entries that are read at once are cut off at these bytes.
const MOST_BYTES: u64 = 8 * 1024 * 1024;

pub(super) struct Steps<'a> {
    pub(super) shared: &'a Shared,
    pub(super) connection: &'a Connection,
}

#[derive(Clone, Copy)]
struct Meta {
    epoch: u64,
    last: Sequence,
    writes: u64,
    bytes: u64,
}

impl Steps<'_> {
    /// Runs a step whole or not at all.
    pub(super) fn whole<T>(&self, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.run("SAVEPOINT step")?;
        let done = step();
        if !self.connection.is_autocommit() {
            if done.is_err() {
                self.run("ROLLBACK TO step")?;
            }
            self.run("RELEASE step")?;
        }
        done
    }

    pub(super) fn append(&self, packed: &Packed) -> Result<Appended> {
        let Meta { epoch, last, writes, bytes } = self.meta()?;
        let now = self.shared.runtime.wall();
        let micros = now.as_microsecond();
        let mut next = last;
        let (mut more_writes, mut more_bytes) = (0, 0);
        let mut spans = Vec::with_capacity(packed.chunks.len());
        for chunk in &packed.chunks {
            if let Some(known) = self.known(chunk, micros)? {
                spans.push(known);
                continue;
            }
            let first = Sequence::next(next, now);
            next = first.plus(chunk.count.max(1)).before();
            if chunk.count > 0 {
                more_writes += chunk.count;
                more_bytes += chunk.payload.len() as u64;
                self.execute(
                    "INSERT INTO entries (id, writes, payload) VALUES (?1, ?2, ?3)",
                    &[&signed(first), &chunk.count.cast_signed(), &chunk.payload],
                )?;
            }
            if let Some(request) = &chunk.idempotency {
                self.execute(
                    "INSERT OR REPLACE INTO requests VALUES (?1, ?2, ?3, ?4)",
                    &[&request.key(), &&request.fingerprint()[..], &signed(first), &micros],
                )?;
                self.forget_requests(micros)?;
            }
            spans.push(Ok(Span { first, repeated: false }));
        }
        let limits = self.shared.options.limits;
        if writes + more_writes > limits.writes || bytes + more_bytes > limits.bytes {
            return Err(journal::full());
        }
        self.keep(next, more_writes.cast_signed(), more_bytes.cast_signed())?;
        let durability = self.shared.durability;
        let spans = packed.spans(&spans);
        Ok(Appended { epoch, previous: last, last: next, durability, spans })
    }

    /// The place of a request that was made before.
    fn known(&self, chunk: &Chunk, micros: i64) -> Result<Option<Result<Span>>> {
        let Some(request) = &chunk.idempotency else { return Ok(None) };
        let found = self
            .connection
            .prepare_cached(
                "SELECT fingerprint, first FROM requests WHERE key = ?1 AND created_at > ?2",
            )
            .and_then(|mut find| {
                let row = params![request.key(), horizon(micros)];
                find.query_row(row, |row| Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, i64>(1)?)))
                    .optional()
            });
        let Some((fingerprint, first)) = found.map_err(failure::of)? else { return Ok(None) };
        let same = fingerprint == request.fingerprint();
        let span = Span { first: sequence(first)?, repeated: true };
        Ok(Some(if same { Ok(span) } else { Err(Idempotency::reused()) }))
    }

    fn forget_requests(&self, micros: i64) -> Result<()> {
        let old = "DELETE FROM requests WHERE key IN (SELECT key FROM requests \
                   WHERE created_at <= ?1 ORDER BY created_at LIMIT 2)";
        self.execute(old, &[&horizon(micros)]).map(drop)
    }

    pub(super) fn settle(&self, done: &[Settled]) -> Result<Progress> {
        let (mut writes, mut bytes) = (0, 0);
        for settled in done {
            let gone = self.execute("DELETE FROM entries WHERE id = ?1", &[&signed(settled.id)])?;
            self.claimed().remove(&settled.id.get());
            // Who settles second changes nothing.
            if gone == 0 {
                continue;
            }
            writes += settled.writes;
            bytes += settled.bytes;
            if settled.first != settled.id {
                let again = "DELETE FROM again WHERE sequence = ?1";
                self.execute(again, &[&signed(settled.first)])?;
            }
            for letter in &settled.dead {
                let payload = journal::encode(letter.sequence, &letter.write);
                self.execute(
                    "INSERT OR REPLACE INTO dead (sequence, payload, reason) VALUES (?1, ?2, ?3)",
                    &[&signed(letter.sequence), &payload, &letter.reason],
                )?;
            }
        }
        self.keep(Sequence::NONE, -writes.cast_signed(), -bytes.cast_signed())?;
        self.progress()
    }

    pub(super) fn progress(&self) -> Result<Progress> {
        let Meta { epoch, last, writes, bytes } = self.meta()?;
        let least = |statement| -> Result<Option<Sequence>> {
            let mut ask = self.connection.prepare_cached(statement).map_err(failure::of)?;
            let least: Option<i64> = ask.query_row([], |row| row.get(0)).map_err(failure::of)?;
            least.map(sequence).transpose()
        };
        let oldest = least("SELECT min(id) FROM entries")?;
        let applied = oldest.map_or(last, Sequence::before);
        let now = Sequence::at(self.shared.runtime.wall()).millis();
        let waited = oldest.map_or(0, |oldest| now.saturating_sub(oldest.millis()));
        let dead = least("SELECT min(sequence) FROM dead")?.map_or(applied, Sequence::before);
        let again = least("SELECT min(sequence) FROM again")?.map_or(applied, Sequence::before);
        let count: i64 = self
            .connection
            .prepare_cached("SELECT count(*) FROM dead")
            .and_then(|mut count| count.query_row([], |row| row.get(0)))
            .map_err(failure::of)?;
        Ok(Progress {
            epoch,
            last,
            applied,
            settled: applied.min(dead).min(again),
            writes,
            bytes,
            age: Duration::from_millis(waited),
            dead: count.cast_unsigned(),
        })
    }

    /// The oldest entries that nobody in this process has, or has had for too long.
    pub(super) fn claim(&self, writes: usize) -> Result<Vec<JournalEntry>> {
        let now = self.shared.runtime.now();
        let takeover = self.shared.options.takeover;
        let mut claimed = self.claimed();
        let free = |id: u64| claimed.get(&id).is_none_or(|at| now - *at >= takeover);
        // What is claimed is mostly the oldest, and is not read again.
        let after = claimed.iter().take_while(|(_, at)| now - **at < takeover).map(|(id, _)| *id);
        let last_claimed = after.last().unwrap_or(0);
        let oldest = self.oldest()?;
        let from = match oldest {
            Some(oldest) if free(oldest) => 0,
            _ => self.first_free(last_claimed, &claimed)?,
        };
        let entries = self.entries(Sequence::new(from), writes, free)?;
        claimed.extend(entries.iter().map(|entry| (entry.id.get(), now)));
        Ok(entries)
    }

    fn oldest(&self) -> Result<Option<u64>> {
        let mut ask =
            self.connection.prepare_cached("SELECT min(id) FROM entries").map_err(failure::of)?;
        let oldest: Option<i64> = ask.query_row([], |row| row.get(0)).map_err(failure::of)?;
        Ok(oldest.map(i64::cast_unsigned))
    }

    /// From where there may be entries that nobody has: behind those that were claimed without a gap.
    fn first_free(&self, last: u64, claimed: &BTreeMap<u64, Instant>) -> Result<u64> {
        let ids = "SELECT count(*) FROM entries WHERE id <= ?1";
        let mut ask = self.connection.prepare_cached(ids).map_err(failure::of)?;
        let there: i64 =
            ask.query_row([last.cast_signed()], |row| row.get(0)).map_err(failure::of)?;
        let known = claimed.range(..=last).count();
        Ok(if usize::try_from(there).is_ok_and(|there| there <= known) { last } else { 0 })
    }

    pub(super) fn peek(&self, after: Sequence, writes: usize) -> Result<Vec<JournalEntry>> {
        self.entries_of(after, writes, |_| true, u64::MAX)
    }

    fn entries(
        &self,
        after: Sequence,
        writes: usize,
        wanted: impl Fn(u64) -> bool,
    ) -> Result<Vec<JournalEntry>> {
        self.entries_of(after, writes, wanted, MOST_BYTES)
    }

    fn entries_of(
        &self,
        after: Sequence,
        writes: usize,
        wanted: impl Fn(u64) -> bool,
        most_bytes: u64,
    ) -> Result<Vec<JournalEntry>> {
        let mut read = self
            .connection
            .prepare_cached("SELECT id, payload FROM entries WHERE id > ?1 ORDER BY id")
            .map_err(failure::of)?;
        let mut rows = read.query([signed(after)]).map_err(failure::of)?;
        let (mut seen, mut bytes, mut entries) = (0, 0, Vec::new());
        while seen < writes.max(1) && bytes < most_bytes {
            let Some(row) = rows.next().map_err(failure::of)? else { break };
            let id = sequence(row.get(0).map_err(failure::of)?)?;
            if !wanted(id.get()) {
                continue;
            }
            let payload = row.get_ref(1).map_err(failure::of)?;
            let payload = payload.as_blob().map_err(|_| corrupt())?;
            let (first, writes) = journal::decode(payload)?;
            seen += writes.len();
            bytes += payload.len() as u64;
            let (first, bytes) = (first.unwrap_or(id), payload.len() as u64);
            entries.push(JournalEntry { id, first, writes, bytes });
        }
        Ok(entries)
    }

    pub(super) fn raise(&self, floor: Sequence) -> Result<()> {
        self.keep(floor, 0, 0)
    }

    pub(super) fn dead(&self, after: Sequence, limit: usize) -> Result<Vec<DeadLetter>> {
        let later =
            "SELECT payload, reason FROM dead WHERE sequence > ?1 ORDER BY sequence LIMIT ?2";
        let mut read = self.connection.prepare_cached(later).map_err(failure::of)?;
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut rows = read.query(params![signed(after), limit]).map_err(failure::of)?;
        let mut letters = Vec::new();
        while let Some(row) = rows.next().map_err(failure::of)? {
            let payload: Vec<u8> = row.get(0).map_err(failure::of)?;
            letters.push(letter(&payload, row.get(1).map_err(failure::of)?)?);
        }
        Ok(letters)
    }

    pub(super) fn retry(&self, sequences: &[Sequence]) -> Result<u64> {
        let (mut done, mut bytes) = (0, 0);
        let mut last = self.meta()?.last;
        for one in sequences {
            let take = "DELETE FROM dead WHERE sequence = ?1 RETURNING payload";
            let payload: Option<Vec<u8>> = self
                .connection
                .prepare_cached(take)
                .and_then(|mut take| take.query_row([signed(*one)], |row| row.get(0)).optional())
                .map_err(failure::of)?;
            let Some(payload) = payload else { continue };
            last = Sequence::next(last, self.shared.runtime.wall());
            self.execute(
                "INSERT INTO entries (id, writes, payload) VALUES (?1, 1, ?2)",
                &[&signed(last), &payload],
            )?;
            self.execute("INSERT OR IGNORE INTO again VALUES (?1)", &[&signed(*one)])?;
            done += 1;
            bytes += payload.len() as u64;
        }
        self.keep(last, done, bytes.cast_signed())?;
        Ok(done.cast_unsigned())
    }

    pub(super) fn bury(&self, sequences: &[Sequence]) -> Result<u64> {
        let mut gone = 0;
        for one in sequences {
            gone += self.execute("DELETE FROM dead WHERE sequence = ?1", &[&signed(*one)])? as u64;
        }
        Ok(gone)
    }

    fn meta(&self) -> Result<Meta> {
        self.connection
            .prepare_cached("SELECT epoch, last, writes, bytes FROM meta")
            .and_then(|mut ask| {
                ask.query_row([], |row| {
                    let number = |index| row.get::<_, i64>(index).map(i64::cast_unsigned);
                    let last = Sequence::new(number(1)?);
                    Ok(Meta { epoch: number(0)?, last, writes: number(2)?, bytes: number(3)? })
                })
            })
            .map_err(failure::of)
    }

    fn keep(&self, last: Sequence, writes: i64, bytes: i64) -> Result<()> {
        let keep = "UPDATE meta SET last = max(last, ?1), writes = writes + ?2, bytes = bytes + ?3";
        self.execute(keep, &[&signed(last), &writes, &bytes]).map(drop)
    }

    fn execute(&self, statement: &str, parameters: &[&dyn ToSql]) -> Result<usize> {
        let prepared = self.connection.prepare_cached(statement);
        prepared.and_then(|mut prepared| prepared.execute(parameters)).map_err(failure::of)
    }

    pub(super) fn run(&self, statement: &str) -> Result<()> {
        self.execute(statement, &[]).map(drop)
    }

    fn claimed(&self) -> MutexGuard<'_, BTreeMap<u64, Instant>> {
        self.shared.claimed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn letter(payload: &[u8], reason: String) -> Result<DeadLetter> {
    let (sequence, mut writes) = journal::decode(payload)?;
    let write = writes.pop().ok_or_else(corrupt)?;
    Ok(DeadLetter { sequence: sequence.ok_or_else(corrupt)?, write, reason })
}

fn signed(sequence: Sequence) -> i64 {
    sequence.get().cast_signed()
}

fn sequence(number: i64) -> Result<Sequence> {
    u64::try_from(number).map(Sequence::new).map_err(|_| corrupt())
}

fn horizon(micros: i64) -> i64 {
    let kept = i64::try_from(Idempotency::KEPT_FOR.as_micros()).unwrap_or(i64::MAX);
    micros.saturating_sub(kept)
}
