//! Compares a ledger with its accounts and with the summaries, and mends them.
//!
//! ```text
//! transactions ── add up to ──▶ account (version v) ── is ──▶ summary (version v)
//! ```
//! The first arrow is looked at in one snapshot of the ledger. The second crosses two stores, so it is
//! looked at after the summaries have come to where the log ended when the accounts were read: a summary
//! that is older then has lost a change, and is no mere lag.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use terrace_core::ledger::{Account, Audited};
use terrace_core::{
    Deadline, Error, ErrorKind, Key, Ledger, ReadOptions, Record, Result, Runtime, Scan, Version,
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
    let found = comparing.compare().await?;
    if !mend || found.is_clean() {
        return Ok(found);
    }
    let wrong = found.wrong_accounts.union(&found.wrong_summaries).cloned();
    for users in wrong.collect::<Vec<_>>().chunks(PAGE) {
        ledger.recount(users).await?;
    }
    if !comparing.compare().await?.is_clean() {
        // A summary may have a version that the ledger has yet to come to.
        kept.follower.begin_anew(&ledger.log().name()).await?;
        if !comparing.compare().await?.is_clean() {
            let message = "not everything could be mended: some summaries have versions that the ledger \
                           has yet to come to; remove them, and run it again";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
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
    /// What is wrong. A summary with a later version than the account that was read is looked at twice: the
    /// account was changed meanwhile, or nobody has ever given that version.
    async fn compare(&self) -> Result<Reconciled> {
        let first = self.pass().await?;
        let mut found = first.found;
        if first.newer.is_empty() {
            return Ok(found);
        }
        let again = self.pass().await?;
        found.wrong_accounts.extend(again.found.wrong_accounts);
        found.wrong_summaries.extend(again.found.wrong_summaries);
        let given = |user: &Key| again.versions.get(user).copied().unwrap_or_default();
        let never = first.newer.into_iter().filter(|(user, version)| given(user) < *version);
        found.wrong_summaries.extend(never.map(|(user, _)| user));
        Ok(found)
    }

    /// How long somebody else may take to bring the summaries to the end of the log.
    const PATIENCE: Duration = Duration::from_secs(10);

    async fn pass(&self) -> Result<Pass> {
        let mut pass = Pass::default();
        let mut after: Option<Key> = None;
        loop {
            let page = self.ledger.audit(after.as_ref(), PAGE).await?;
            self.catch_up().await?;
            let last = (page.len() == PAGE).then(|| page.last().map(|it| it.user.clone()));
            let last = last.flatten();
            let summaries = self.summaries(after.as_ref(), last.as_ref()).await?;
            pass.compare(&page, summaries);
            let Some(last) = last else { return Ok(pass) };
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

/// One look at all users.
#[derive(Default)]
struct Pass {
    found: Reconciled,
    /// The versions of the accounts that were read.
    versions: BTreeMap<Key, Version>,
    /// The summaries that are newer than the accounts that were read, with their versions.
    newer: BTreeMap<Key, Version>,
}

impl Pass {
    /// Both are in the order of users.
    fn compare(&mut self, page: &[Audited], summaries: Vec<Record>) {
        let mut summaries = summaries.into_iter().peekable();
        self.found.accounts += page.len() as u64;
        for audited in page {
            while let Some(stray) = summaries.next_if(|summary| summary.key < audited.user) {
                self.newer.insert(stray.key, stray.version);
            }
            let summary = summaries.next_if(|summary| summary.key == audited.user);
            self.compare_one(audited, summary);
        }
        // Perhaps their accounts came a moment ago.
        self.newer.extend(summaries.map(|stray| (stray.key, stray.version)));
    }

    fn compare_one(&mut self, audited: &Audited, summary: Option<Record>) {
        let Audited { user, kept, counted } = audited;
        let account = |record: &Record| Account::of(&record.value).ok();
        let version = kept.as_ref().map_or(Version::NONE, |record| record.version);
        self.versions.insert(user.clone(), version);
        let right = match kept {
            Some(record) => counted.is_some() && account(record) == *counted,
            None => counted.is_none(),
        };
        if !right {
            self.found.wrong_accounts.insert(user.clone());
            return;
        }
        match (kept, summary) {
            (None, None) => {}
            (_, Some(summary)) if summary.version > version => {
                self.newer.insert(user.clone(), summary.version);
            }
            (Some(kept), Some(summary))
                if summary.version == version && account(kept) == account(&summary) => {}
            _ => {
                self.found.wrong_summaries.insert(user.clone());
            }
        }
    }
}
