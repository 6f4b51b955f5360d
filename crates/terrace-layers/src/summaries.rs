//! What each user's transactions come to, kept in another store than the ledger.

mod reconcile;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use terrace_core::ledger::Account;
use terrace_core::{
    ChangeLog, Checkpoint, Consistency, Deadline, Follower, Inspection, Key, Ledger, LogPosition,
    ReadOptions, Result, Runtime, Store, Token, history, one,
};

use crate::follow::{Follow, FollowOptions, Following};
use crate::heads::Heads;

pub use reconcile::{Reconciled, reconcile};

/// Where summaries are kept.
#[derive(Clone, Debug)]
pub struct SummaryStore {
    /// The summaries: under the user's name the account as the ledger has it, with its version.
    pub store: Arc<dyn Store>,
    /// What brings the changes of accounts there.
    pub follower: Arc<dyn Follower>,
}

/// A ledger's accounts as another store has them.
///
/// **What it is.** A follower of the ledger's change log. The ledger owns the accounts; this is a copy
/// that is complete up to a position, and nobody writes to both.
///
/// **On read.** The copy answers, with how far it lags. With a token, or strongly, the read waits until
/// the copy has come as far, for at most [`Summaries::WAIT`], and is refused when it has not.
///
/// **On failure.** Without the ledger the copy goes on answering, and nobody knows how old it is. What the
/// store misses while it is down is in the log.
///
/// **What it gives up.** A read without a token may be behind.
pub struct Summaries {
    ledger: Arc<dyn Ledger>,
    log: Arc<dyn ChangeLog>,
    kept: SummaryStore,
    following: Following,
    heads: Heads,
    runtime: Runtime,
}

/// A user's account as the copy has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// The account; `None` where there is none.
    pub account: Option<Account>,
    /// Everything acknowledged longer ago than this is in it; `None` when nobody knows.
    pub lag: Option<Duration>,
    /// What the client has seen with it.
    pub token: Token,
}

impl Summaries {
    /// How long a read with a token waits.
    pub const WAIT: Duration = Duration::from_millis(500);
    /// How long the ledger is asked where its log ends.
    const ASK: Duration = Duration::from_millis(250);
    /// Accounts of one batch. A document server writes each by itself, and all of them in one call.
    const BATCH: usize = 100;
    const NAME: &str = "summaries";

    /// Starts to follow this ledger.
    pub fn start(ledger: Arc<dyn Ledger>, kept: SummaryStore, runtime: Runtime) -> Self {
        let log = ledger.log();
        let following = follow(&*ledger, &kept, &runtime).led_by(ledger.lease()).start();
        Self { ledger, log, kept, following, heads: Heads::default(), runtime }
    }

    /// The summary of a user.
    ///
    /// # Errors
    /// `Unavailable` when the store cannot be reached, or has not come in time to what the token asks.
    pub async fn read(&self, user: &Key, how: &ReadOptions) -> Result<Summary> {
        let begun = self.runtime.now();
        let by = Deadline::at(begun + Self::WAIT).min(how.deadline);
        let head = self.head(how).await;
        let asked = match how.consistency {
            Consistency::Strong => Some(head.clone()?),
            _ => self.asked(how)?,
        };
        for round in 0.. {
            // In this order: the copy is at least as new as the checkpoint that was read before it, unless
            // it has begun anew since.
            let checkpoint = self.kept.follower.checkpoint().await?;
            let read = one(self.kept.store.read(std::slice::from_ref(user), &plain(how)).await?)?;
            let goes_on = self.kept.follower.checkpoint().await?.goes_on_from(&checkpoint);
            let lag = self.lag(&checkpoint, head.as_ref().ok());
            let fresh = match how.consistency {
                Consistency::MaxStale(limit) => lag.is_some_and(|lag| lag <= limit),
                _ => asked.is_none_or(|asked| self.has(&checkpoint, asked)),
            };
            if fresh && goes_on {
                let account = read.record.map(|record| Account::of(&record.value)).transpose()?;
                return Ok(Summary { account, lag, token: self.token(&checkpoint) });
            }
            if by.passed(self.runtime.now()) {
                return Err(history::behind());
            }
            // Where another instance follows, looks that begin at 2 ms and double.
            let look = Duration::from_millis(2 << round.min(5));
            let wanted = asked.or_else(|| head.as_ref().ok().copied()).unwrap_or_default();
            self.following.follow().progressed(wanted, look, by).await;
        }
        Err(history::behind())
    }

    /// Where the ledger's log ends now.
    async fn head(&self, how: &ReadOptions) -> Result<LogPosition> {
        let asked = self.runtime.now();
        let by = Deadline::at(asked + Self::ASK).min(how.deadline);
        let head = self.runtime.within(by, self.log.head()).await;
        let head = head.unwrap_or_else(|| Err(Deadline::exceeded()))?;
        self.heads.note(head, asked);
        Ok(head)
    }

    /// The place in the log that the token asks for.
    fn asked(&self, how: &ReadOptions) -> Result<Option<LogPosition>> {
        let Some(token) = &how.token else { return Ok(None) };
        let histories = self.ledger.histories();
        histories.check(token)?;
        if histories.is_behind(token) {
            return Err(history::behind());
        }
        Ok(token.position(&histories.name()).map(|position| self.log.place_of(position)))
    }

    fn has(&self, checkpoint: &Checkpoint, asked: LogPosition) -> bool {
        checkpoint.is_in(&self.log.name()) && checkpoint.position >= asked
    }

    fn lag(&self, checkpoint: &Checkpoint, head: Option<&LogPosition>) -> Option<Duration> {
        if !checkpoint.is_in(&self.log.name()) {
            return None;
        }
        match head {
            Some(head) if checkpoint.position >= *head => Some(Duration::ZERO),
            _ => self.heads.age(checkpoint.position, self.runtime.now()),
        }
    }

    fn token(&self, checkpoint: &Checkpoint) -> Token {
        if !checkpoint.is_in(&self.log.name()) {
            return Token::default();
        }
        Token::of(self.ledger.histories().name(), self.log.position_of(checkpoint.position))
    }

    /// How far it has come.
    pub fn inspect(&self) -> Inspection {
        self.following.follow().inspect()
    }

    /// Ends the following; another instance may go on at once.
    pub async fn stop(&self) {
        self.following.stop().await;
    }
}

impl fmt::Debug for Summaries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Summaries({:?})", self.following.follow())
    }
}

fn follow(ledger: &dyn Ledger, kept: &SummaryStore, runtime: &Runtime) -> Follow {
    let follower = Arc::clone(&kept.follower);
    let options = FollowOptions { batch: Summaries::BATCH, ..FollowOptions::default() };
    Follow::new(Summaries::NAME, ledger.log(), follower, options, runtime.clone())
}

/// The copy's own history means nothing to a client of the ledger.
fn plain(how: &ReadOptions) -> ReadOptions {
    ReadOptions { deadline: how.deadline, ..ReadOptions::default() }
}
