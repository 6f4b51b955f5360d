//! Compares a ledger with its accounts and with the summaries, and mends them.
//!
//! ```text
//! transactions ── add up to ──▶ account (version v) ── is ──▶ summary (version v)
//! ```
//! The first arrow is looked at in one snapshot of the ledger. The second crosses two stores, so it is
//! looked at after the summaries have come to where the log ended when the accounts were read: a summary
//! that is older then has lost a change, and is no mere lag.

use std::collections::BTreeSet;
use std::time::Duration;

use terrace_core::ledger::{Account, Audited};
use terrace_core::{
    Deadline, Error, ErrorKind, Key, Ledger, ReadOptions, Record, Result, Runtime, Scan,
};

use super::{SummaryStore, follow};
use crate::follow::Follow;

/// What was found, and whether it was mended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reconciled {
    /// How many accounts were looked at.
    pub accounts: u64,
    /// Users whose account is not what their transactions add up to.
    pub wrong_accounts: BTreeSet<Key>,
    /// Users whose summary is not their account.
    pub wrong_summaries: BTreeSet<Key>,
}

impl Reconciled {
    /// Whether nothing was wrong.
    pub fn is_clean(&self) -> bool {
        self.wrong_accounts.is_empty() && self.wrong_summaries.is_empty()
    }
}

/// Compares them, and with `mend` counts anew whatever is wrong, and brings it to the summaries. Without,
/// nothing is changed.
///
/// # Errors
/// Of the stores; `Unavailable` without `mend` when nobody brings the summaries to the end of the log.
pub async fn reconcile(
    ledger: &dyn Ledger,
    kept: &SummaryStore,
    mend: bool,
    runtime: &Runtime,
) -> Result<Reconciled> {
    let follow = follow(ledger, kept, runtime);
    let comparing = Comparing { ledger, kept, follow, mend, runtime };
    let (mut found, moving) = comparing.pass().await?;
    if !moving.is_empty() {
        // They had a later version than the account that was read: it was changed meanwhile, or nobody
        // has ever had that version.
        let (again, still) = comparing.pass().await?;
        found.wrong_accounts.extend(again.wrong_accounts);
        found.wrong_summaries.extend(again.wrong_summaries);
        found.wrong_summaries.extend(moving.intersection(&still).cloned());
    }
    if mend && !found.is_clean() {
        let wrong = found.wrong_accounts.union(&found.wrong_summaries).cloned();
        let wrong = wrong.collect::<Vec<_>>();
        for users in wrong.chunks(PAGE) {
            ledger.recount(users).await?;
        }
        comparing.catch_up().await?;
    }
    Ok(found)
}

/// Accounts of one page.
const PAGE: usize = 500;

struct Comparing<'a> {
    ledger: &'a dyn Ledger,
    kept: &'a SummaryStore,
    follow: Follow,
    mend: bool,
    runtime: &'a Runtime,
}

impl Comparing<'_> {
    /// How long somebody else may take to bring the summaries to the end of the log.
    const PATIENCE: Duration = Duration::from_secs(10);

    /// What is wrong, and the summaries that are newer than the accounts that were read.
    async fn pass(&self) -> Result<(Reconciled, BTreeSet<Key>)> {
        let (mut found, mut newer) = (Reconciled::default(), BTreeSet::new());
        let mut after: Option<Key> = None;
        loop {
            let page = self.ledger.audit(after.as_ref(), PAGE).await?;
            self.catch_up().await?;
            let last = (page.len() == PAGE).then(|| page.last().map(|it| it.user.clone()));
            let last = last.flatten();
            let summaries = self.summaries(after.as_ref(), last.as_ref()).await?;
            found.accounts += page.len() as u64;
            compare(&page, summaries, &mut found, &mut newer);
            let Some(last) = last else { return Ok((found, newer)) };
            after = Some(last);
        }
    }

    /// Brings the summaries to where the log ends now, or waits until somebody has.
    async fn catch_up(&self) -> Result<()> {
        if self.mend {
            return self.follow.catch_up_to_head().await;
        }
        let log = self.ledger.log();
        let head = log.head().await?;
        let by = Deadline::at(self.runtime.now() + Self::PATIENCE);
        loop {
            let checkpoint = self.kept.follower.checkpoint().await?;
            if checkpoint.is_in(&log.name()) && checkpoint.position >= head {
                return Ok(());
            }
            if by.passed(self.runtime.now()) {
                let message = "nobody brings the summaries to the end of the ledger's log, so they \
                               cannot be compared; serve level 8, or leave --dry-run out, which \
                               applies what is missing";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
            self.runtime.sleep(Duration::from_millis(50)).await;
        }
    }

    /// The summaries after a user, up to a user.
    async fn summaries(&self, after: Option<&Key>, last: Option<&Key>) -> Result<Vec<Record>> {
        let mut all = Vec::new();
        let mut scan =
            Scan { prefix: String::new(), after: after.cloned(), limit: Scan::MAX_LIMIT };
        loop {
            let page = self.kept.store.scan(&scan, &ReadOptions::default()).await?;
            let within = |record: &Record| last.is_none_or(|last| record.key <= *last);
            let ends = !page.records.last().is_some_and(within);
            all.extend(page.records.into_iter().filter(within));
            match page.next {
                Some(next) if !ends => scan.after = Some(next),
                _ => return Ok(all),
            }
        }
    }
}

/// Both are in the order of users.
fn compare(
    page: &[Audited],
    summaries: Vec<Record>,
    found: &mut Reconciled,
    newer: &mut BTreeSet<Key>,
) {
    let mut summaries = summaries.into_iter().peekable();
    let account = |record: &Record| Account::of(&record.value).ok();
    for Audited { user, kept, counted } in page {
        while let Some(stray) = summaries.next_if(|summary| summary.key < *user) {
            found.wrong_summaries.insert(stray.key);
        }
        let summary = summaries.next_if(|summary| summary.key == *user);
        let right = match kept {
            Some(record) => counted.is_some() && account(record) == *counted,
            None => counted.is_none(),
        };
        if !right {
            found.wrong_accounts.insert(user.clone());
            continue;
        }
        match (kept, summary) {
            (None, None) => {}
            (Some(kept), Some(summary)) if summary.version == kept.version => {
                if account(kept) != account(&summary) {
                    found.wrong_summaries.insert(user.clone());
                }
            }
            (kept, Some(summary))
                if kept.as_ref().is_none_or(|it| summary.version > it.version) =>
            {
                newer.insert(user.clone());
            }
            _ => {
                found.wrong_summaries.insert(user.clone());
            }
        }
    }
    found.wrong_summaries.extend(summaries.map(|stray| stray.key));
}
