//! Reads that see the writes that wait.

use std::time::Duration;

use terrace_core::{
    Consistency, Deadline, Key, Origin, Page, Position, Read, ReadOptions, Record, Result, Scan,
    Sequence, Token, Version,
};

use super::Shared;
use super::direct::behind;
use super::horizon::JournalPlace;
use super::pending::Waiting;

/// What a read asks of the journal, and how it asks the store below.
struct Asked {
    own: Option<JournalPlace>,
    /// The store below may know of a later write of another instance, which what waits here hides.
    elsewhere: bool,
    /// What is settled of that; reads below have to show it.
    settled: Sequence,
    below: ReadOptions,
}

/// How long a read whose keys all wait lasts for the record below, which only tells when it was created.
const BELOW_WITHIN: Duration = Duration::from_millis(200);

impl Shared {
    pub(super) async fn read(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        if how.is_default() {
            return self.look_up(keys, self.horizon.find(keys), how, None).await;
        }
        let (found, asked) =
            self.reach_keys(keys, how).await.map_err(|error| error.during("read"))?;
        self.look_up(keys, found, &asked.below, asked.own).await
    }

    async fn reach_keys(
        &self,
        keys: &[Key],
        how: &ReadOptions,
    ) -> Result<(Option<Vec<Option<Waiting>>>, Asked)> {
        let asked = self.reach(how).await?;
        if how.consistency == Consistency::Strong {
            self.until_seen_below(asked.settled, self.patience(how.deadline)).await?;
            self.settle(keys, how.deadline).await?;
            return Ok((None, asked));
        }
        let find = || self.horizon.find_latest(keys);
        let mut found = self.resolve(&asked, find, Option::is_some, how.deadline).await?;
        // What is not settled is answered as it is, also while nothing can be read below.
        let applied = self.horizon.progress().applied;
        let waits = |it: &Option<Waiting>| it.as_ref().is_some_and(|it| it.sequence() > applied);
        if !found.as_ref().is_some_and(|found| found.iter().all(waits)) {
            self.until_seen_below(asked.settled, self.patience(how.deadline)).await?;
            found = self.resolve(&asked, find, Option::is_some, how.deadline).await?;
        }
        Ok((found, asked))
    }

    /// What waits, once none of it may hide something later.
    async fn resolve<T>(
        &self,
        asked: &Asked,
        find: impl Fn() -> Result<T, Sequence>,
        waits: impl Fn(&T) -> bool,
        deadline: Deadline,
    ) -> Result<T> {
        let limit = self.patience(deadline);
        let mut looked = !asked.elsewhere;
        loop {
            match find() {
                Ok(found) if looked || !waits(&found) => return Ok(found),
                Ok(_) => {
                    self.look(limit).await?;
                    looked = true;
                }
                Err(doubtful) => self.until_seen_below(doubtful, limit).await?,
            }
        }
    }

    /// Makes sure that this instance knows as much of the journal as the read asks for.
    async fn reach(&self, how: &ReadOptions) -> Result<Asked> {
        let limit = self.patience(how.deadline);
        let mut below = how.clone();
        let (mut own, mut elsewhere, mut settled) = (None, false, Sequence::NONE);
        if let Some(token) = &how.token {
            let rest;
            (own, rest) = self.horizon.asked(token);
            elsewhere = rest.marks().any(|(_, position)| position > Position::NONE);
            below.token = Some(rest).filter(|rest| !rest.is_empty());
        }
        let bounded = matches!(how.consistency, Consistency::MaxStale(_));
        if bounded || own.is_some_and(|own| !self.horizon.knows(own)) {
            self.look(limit).await?;
            elsewhere = false;
        }
        if let Some(asked) = own {
            let asked = self.in_this_life(asked).await?;
            own = Some(asked);
            self.horizon.check(asked)?;
            settled = self.horizon.settled_of(asked.sequence);
        }
        Ok(Asked { own, elsewhere, settled, below })
    }

    /// A place of an earlier life of the journal that this one has.
    async fn in_this_life(&self, asked: JournalPlace) -> Result<JournalPlace> {
        let epoch = self.horizon.progress().epoch;
        if asked.epoch < epoch
            && let Some(end) = self.journal.end_of(asked.epoch).await?
            && asked.sequence <= end
        {
            return Ok(JournalPlace { epoch, ..asked });
        }
        Ok(asked)
    }

    /// As [`Shared::refresh`], and returns once reads below show what is settled.
    async fn look(&self, limit: Deadline) -> Result<()> {
        let progress = self.refresh(limit).await?;
        self.until_seen_below(progress.applied, limit).await
    }

    async fn until_seen_below(&self, place: Sequence, limit: Deadline) -> Result<()> {
        let seen = self.horizon.until_applied(place);
        if self.runtime.within(limit, seen).await == Some(true) { Ok(()) } else { Err(behind()) }
    }

    /// Reads below, and puts what waits over it. What waits is looked at first: a write that is
    /// settled meanwhile is found below.
    async fn look_up(
        &self,
        keys: &[Key],
        found: Option<Vec<Option<Waiting>>>,
        how: &ReadOptions,
        own: Option<JournalPlace>,
    ) -> Result<Vec<Read>> {
        let Some(found) = found else {
            let mut reads = self.inner.read(keys, how).await?;
            self.prove(&mut reads, own);
            return Ok(reads);
        };
        // A record that waits needs the one below for the time of its creation only. Where that
        // cannot be read it is answered without.
        let all_wait = found.iter().all(Option::is_some);
        let limit = match all_wait {
            true => how.deadline.min(Deadline::at(self.runtime.now() + BELOW_WITHIN)),
            false => how.deadline,
        };
        let below = self.runtime.within(limit, self.inner.read(keys, how)).await;
        let mut reads = match below.unwrap_or_else(|| Err(Deadline::exceeded())) {
            Ok(reads) => reads,
            Err(error) if all_wait => {
                tracing::debug!(%error, "answered from what waits alone");
                vec![nothing(); keys.len()]
            }
            Err(error) => return Err(error),
        };
        self.prove(&mut reads, own);
        for ((key, read), waiting) in keys.iter().zip(&mut reads).zip(found) {
            if let Some(waiting) = waiting {
                let record = waiting.record(key.clone(), read.record.as_ref())?;
                read.token.merge(&self.horizon.token_now(waiting.sequence()));
                let token = std::mem::take(&mut read.token);
                *read = Read { record, origin: Origin::JOURNAL, token, ..nothing() };
            }
        }
        Ok(reads)
    }

    /// An answer that was read after everything up to `own` was known proves that.
    fn prove(&self, reads: &mut [Read], own: Option<JournalPlace>) {
        if let Some(own) = own {
            let token = self.horizon.token(own.epoch, own.sequence);
            reads.iter_mut().for_each(|read| read.token.merge(&token));
        }
    }

    pub(super) async fn scan(&self, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        if how.is_default() {
            return self.list(scan, self.horizon.within(scan), how, None).await;
        }
        let (waiting, asked) =
            self.reach_scan(scan, how).await.map_err(|error| error.during("scan"))?;
        self.list(scan, waiting, &asked.below, asked.own).await
    }

    async fn reach_scan(&self, scan: &Scan, how: &ReadOptions) -> Result<(Vec<Waiting>, Asked)> {
        let asked = self.reach(how).await?;
        self.until_seen_below(asked.settled, self.patience(how.deadline)).await?;
        if how.consistency == Consistency::Strong {
            self.look(self.patience(how.deadline)).await?;
        }
        let find = || self.horizon.latest_within(scan);
        let waits = |found: &Vec<Waiting>| !found.is_empty();
        let waiting = self.resolve(&asked, find, waits, how.deadline).await?;
        Ok((waiting, asked))
    }

    async fn list(
        &self,
        scan: &Scan,
        waiting: Vec<Waiting>,
        how: &ReadOptions,
        own: Option<JournalPlace>,
    ) -> Result<Page> {
        let mut page = self.inner.scan(scan, how).await?;
        if let Some(newest) = waiting.iter().map(Waiting::sequence).max() {
            page = overlay(page, waiting, scan.limit)?;
            page.token.merge(&self.horizon.token_now(newest));
        }
        if let Some(own) = own {
            page.token.merge(&self.horizon.token(own.epoch, own.sequence));
        }
        Ok(page)
    }
}

impl Waiting {
    /// The record that there will be.
    fn record(&self, key: Key, below: Option<&Record>) -> Result<Option<Record>> {
        let at = self.at();
        let below = below.filter(|_| !self.is_reborn());
        Ok(self.value()?.map(|value| Record {
            key,
            value,
            version: Version::NONE,
            created_at: below.map_or(at, |record| record.created_at),
            updated_at: below.map_or(at, |record| at.max(record.created_at)),
        }))
    }
}

/// Puts what waits over a page. What lies beyond the end of the page belongs to the next one.
fn overlay(page: Page, waiting: Vec<Waiting>, limit: usize) -> Result<Page> {
    let Page { records, next, origin, age, token } = page;
    let mut merged = Vec::with_capacity(records.len() + waiting.len());
    let mut below = records.into_iter().peekable();
    // Only this far is it known what waits; a full list may go on behind its end.
    for waiting in waiting {
        let key = waiting.key()?;
        if next.as_ref().is_some_and(|end| key > *end) {
            break;
        }
        while let Some(record) = below.next_if(|record| record.key < key) {
            merged.push(record);
        }
        let same = below.next_if(|record| record.key == key);
        merged.extend(waiting.record(key, same.as_ref())?);
    }
    merged.extend(below);
    if merged.len() > limit {
        return Ok(Page { age, ..Page::cut(merged, limit, origin).proving(token) });
    }
    Ok(Page { records: merged, next, origin, age, token })
}

fn nothing() -> Read {
    Read {
        record: None,
        version: Version::NONE,
        origin: Origin::PRIMARY,
        age: Duration::ZERO,
        token: Token::default(),
        proof: None,
    }
}
