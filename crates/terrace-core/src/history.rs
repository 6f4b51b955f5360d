//! How it is known which database answers, how far it has come, and whether caches may be believed.
//!
//! Three facts, which are never compared with each other:
//!
//! - the **history**: the life of one database, named by what cannot be copied with its data. A clone,
//!   a restore or a failover begins a new one;
//! - the **position**: everything at or before it has become visible, or has failed. A version cannot
//!   tell that: it is drawn before the commit;
//! - the **generation**: a number that the database keeps. Whoever could not tell a cache of a write
//!   raises it before the write is acknowledged, so that nobody believes what was cached before.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use arc_swap::ArcSwap;
use futures_util::future::BoxFuture;
use tokio::sync::watch;

use crate::{Error, ErrorKind, Key, Result, Token};

/// How far one history has become visible: every transaction at or before it has ended.
///
/// On PostgreSQL a transaction id: a write is at its own, a read proves the one before the `xmin` of
/// its snapshot. On SQLite, which has one writer, the number of the commit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position(u64);

impl Position {
    /// Before everything.
    pub const NONE: Self = Self(0);

    /// The position with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// Which cache entries of a history may be believed: those that were loaded under this or a later one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(u64);

impl Generation {
    /// The generation with this number.
    pub const fn new(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// What one answer of a database proves. It is kept with the answer in caches, and nothing else is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proof {
    /// The history that it is of.
    pub history: Arc<str>,
    /// The generation that its snapshot showed.
    pub generation: Generation,
    /// Everything at or before it was visible to it.
    pub through: Position,
    /// The write that it shows. It may lie beyond `through`: a write is visible while slower ones that
    /// began before it have yet to end.
    pub shown: Position,
}

impl Proof {
    /// What a client has seen that got this answer.
    pub fn token(&self) -> Token {
        Token::of(Arc::clone(&self.history), self.through.max(self.shown))
    }
}

/// The databases below a cache, as their caches see them.
pub trait Generations: fmt::Debug + Send + Sync + 'static {
    /// Whether an entry with this proof may be served to a reader with this token, as far as it was
    /// heard last.
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool;

    /// When everything was looked at last; `None` before the first time.
    fn looked_at(&self) -> Option<Instant>;

    /// The history that was heard last, where there is one database.
    fn history(&self) -> Option<Arc<str>> {
        None
    }

    /// Told of each change of a history or a generation that was heard.
    fn changes(&self) -> watch::Receiver<u64>;

    /// Asks the databases. Cancellation safe.
    ///
    /// # Errors
    /// `Unavailable` when one that was asked cannot be reached; what the others said counts.
    fn look(&self) -> BoxFuture<'_, Result<()>>;

    /// Raises the generation of the databases that have these keys, durably: nobody believes from then
    /// on what was cached before. A dropped call may have raised it.
    ///
    /// # Errors
    /// `Unavailable` when one cannot be reached; it may have been raised.
    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<()>>;
}

/// What a database was heard to say of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its history.
    pub history: Arc<str>,
    /// The generation that caches must have.
    pub generation: Generation,
    /// Histories that this database had before, as far as it was copied or restored. What they prove
    /// is lost.
    pub past: Vec<Arc<str>>,
}

/// What was heard of one database, for whoever believes caches or tokens of it.
#[derive(Debug)]
pub struct Histories {
    standing: ArcSwap<Standing>,
    looked_at: ArcSwap<Option<Instant>>,
    changes: watch::Sender<u64>,
    raised: tokio::sync::Mutex<u64>,
    wanted: AtomicU64,
}

impl Histories {
    /// Of a database that said this.
    pub fn new(standing: Standing) -> Self {
        Self {
            standing: ArcSwap::from_pointee(standing),
            looked_at: ArcSwap::from_pointee(None),
            changes: watch::Sender::new(0),
            raised: tokio::sync::Mutex::default(),
            wanted: AtomicU64::new(0),
        }
    }

    /// What was heard last.
    pub fn standing(&self) -> Arc<Standing> {
        self.standing.load_full()
    }

    /// The name of the history that was heard last.
    pub fn name(&self) -> Arc<str> {
        Arc::clone(&self.standing.load().history)
    }

    /// Notes what the database said, when it was asked at `asked`. Within a history a generation never
    /// goes back and what is past only grows, so an answer that was overtaken changes nothing.
    pub fn heard(&self, said: Standing, asked: Instant) {
        self.looked_at.store(Arc::new(Some(asked)));
        let mut news = false;
        self.standing.rcu(|known| {
            let same = known.history == said.history;
            let older = match same {
                true => known.generation >= said.generation && known.past.len() >= said.past.len(),
                false => known.past.contains(&said.history),
            };
            news = !older;
            match older {
                true => Arc::clone(known),
                false if same => Arc::new(Standing {
                    generation: known.generation.max(said.generation),
                    ..said.clone()
                }),
                false => Arc::new(said.clone()),
            }
        });
        if news {
            self.changes.send_modify(|number| *number += 1);
        }
    }

    /// Notes the history of a replica, unless something was heard before: whoever starts while no primary
    /// is there has a name to begin with. Of generations a replica may know less than its primary, so
    /// nothing was looked at.
    pub fn begins_with(&self, history: &Arc<str>) {
        self.standing.rcu(|known| match known.history.is_empty() {
            true => Arc::new(Standing::of(Arc::clone(history))),
            false => Arc::clone(known),
        });
    }

    /// See [`Generations::looked_at`].
    pub fn looked_at(&self) -> Option<Instant> {
        **self.looked_at.load()
    }

    /// See [`Generations::changes`].
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Whether this is the history that was heard last.
    pub fn has(&self, history: &str) -> bool {
        *self.standing.load().history == *history
    }

    /// See [`Generations::admits`].
    pub fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        let standing = self.standing.load();
        standing.history == proof.history
            && proof.generation >= standing.generation
            && asked.is_none_or(|asked| standing.is_proved(asked, proof.through))
    }

    /// Whether a token is of a later life of the database than was heard of.
    pub fn is_behind(&self, asked: &Token) -> bool {
        self.standing.load().is_behind(asked)
    }

    /// Refuses a token that names a history which this database had and has no more.
    ///
    /// # Errors
    /// `Unavailable`, which says what to do.
    pub fn check(&self, asked: &Token) -> Result<()> {
        if self.standing.load().has_lost(asked) { Err(lost()) } else { Ok(()) }
    }

    /// Raises the generation by `work`, once for all who wait for it: one that begins after a caller
    /// came serves that caller, too.
    ///
    /// # Errors
    /// Of `work`.
    pub async fn raise<F>(&self, work: impl FnOnce() -> F) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        let mine = self.wanted.fetch_add(1, Ordering::AcqRel) + 1;
        let mut raised = self.raised.lock().await;
        if *raised >= mine {
            return Ok(());
        }
        let serves = self.wanted.load(Ordering::Acquire);
        work().await?;
        *raised = serves;
        Ok(())
    }
}

impl Standing {
    /// The first of a history: nothing was raised, nothing is past.
    pub fn of(history: impl Into<Arc<str>>) -> Self {
        Self { history: history.into(), generation: Generation::default(), past: Vec::new() }
    }

    /// Whether both are lives of one database, of which one may have taken the other's place.
    pub fn is_kin(&self, other: &Self) -> bool {
        lineage(&self.history) == lineage(&other.history)
    }

    /// Whether a token is of a life of these data that was not heard of: of the same origin, and neither
    /// this history nor a past one. It may be a later one, or one that a restore has left no trace of.
    /// So is one of a journal whose writes may wait for it: only who reads the journal knows of them.
    pub fn is_behind(&self, asked: &Token) -> bool {
        let mine = origin(&self.history);
        let unknown = |name: &Arc<str>| {
            *name != self.history && origin(name) == mine && !self.past.contains(name)
        };
        let waits = |name: &str| {
            let life = name.strip_prefix(JOURNAL_OF).and_then(|rest| rest.rsplit_once(':'));
            life.is_some_and(|(lineage, _)| origin(lineage) == mine)
        };
        asked.marks().any(|(name, _)| unknown(name) || waits(name))
    }

    fn is_proved(&self, asked: &Token, through: Position) -> bool {
        asked.position(&self.history).is_none_or(|asked| asked <= through)
            && !self.has_lost(asked)
            && !self.is_behind(asked)
    }

    /// Whether a token is of an earlier life of this database.
    pub fn has_lost(&self, asked: &Token) -> bool {
        !self.past.is_empty() && asked.marks().any(|(name, _)| self.past.contains(name))
    }
}

/// The part of a history's name that a failover leaves as it is, and a copy does not: all before the
/// last dot. What waits for a database, as a journal does, is named by it.
pub fn lineage(history: &str) -> &str {
    history.rsplit_once('.').map_or(history, |(lineage, _)| lineage)
}

/// The first lineage of the data, which a copy keeps, too: the backup that is put back a second time
/// does not know what was done in between, but it knows of what data that was.
pub fn origin(history: &str) -> &str {
    let lineage = lineage(history);
    lineage.rsplit_once(COPY_OF).map_or(lineage, |(_, origin)| origin)
}

/// What ends the first part of a new lineage for data that had this history.
pub fn copy_of(history: &str) -> String {
    format!("{COPY_OF}{}", origin(history))
}

const COPY_OF: &str = "-of-";

const JOURNAL_OF: &str = "journal-of-";

/// The name in tokens of the journal whose writes wait for the database with this history.
pub fn journal_of(history: &str) -> String {
    format!("{JOURNAL_OF}{}", lineage(history))
}

/// The name of a change log in one life of its database. In another one it may lack changes that a
/// follower has seen.
pub fn log_in(log: &str, history: &str) -> Arc<str> {
    format!("{log}@{history}").into()
}

/// The part of a change log's name that the life of its database does not change.
pub fn log_of(name: &str) -> &str {
    name.split_once('@').map_or(name, |(log, _)| log)
}

/// The error for a token of a history that has ended.
pub fn lost() -> Error {
    let message = "the token is of an earlier life of this database, of which something may be lost \
                   (it was restored, copied, or another server took its place); drop the token to \
                   read what there is";
    Error::new(ErrorKind::Unavailable, message)
}

/// The error for a token that asks for more than its database has ever done.
pub fn ahead() -> Error {
    let message = "the token asks for more than the database has done, as after a loss of its last \
                   writes; drop the token to read what there is";
    Error::new(ErrorKind::Unavailable, message)
}

/// The error of a server that cannot prove yet what a token asks for.
pub fn behind() -> Error {
    let message = "the server cannot prove yet what the token asks for; try again, ask another, or drop \
                   the token to read what there is";
    Error::new(ErrorKind::Unavailable, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Runtime;

    fn proof(history: &str, generation: u64, through: u64) -> Proof {
        Proof {
            history: history.into(),
            generation: Generation::new(generation),
            through: Position::new(through),
            shown: Position::NONE,
        }
    }

    #[test]
    fn an_entry_is_admitted_under_its_history_its_generation_and_what_it_proves() {
        let past = vec![Arc::from("db.1")];
        let generation = Generation::new(3);
        let standing = Standing { history: "db.2".into(), generation, past };
        let known = Histories::new(standing);
        assert!(known.admits(&proof("db.2", 3, 0), None));
        assert!(known.admits(&proof("db.2", 4, 0), None), "not heard of yet");
        assert!(!known.admits(&proof("db.2", 2, 0), None), "an older generation");
        assert!(!known.admits(&proof("db.1", 9, 9), None), "an older history");
        let asks = |history: &str, position| Token::of(history, Position::new(position));
        assert!(known.admits(&proof("db.2", 3, 7), Some(&asks("db.2", 7))));
        assert!(!known.admits(&proof("db.2", 3, 7), Some(&asks("db.2", 8))));
        assert!(known.admits(&proof("db.2", 3, 7), Some(&asks("another", 99))));
        assert!(!known.admits(&proof("db.2", 3, 7), Some(&asks("db.1", 1))), "lost");
        let mut both = asks("db.1", 1);
        both.merge(&asks("db.2", 1));
        assert!(!known.admits(&proof("db.2", 3, 7), Some(&both)), "one of the two is lost");
        assert!(known.check(&both).is_err() && known.check(&asks("db.2", 1)).is_ok());
    }

    #[test]
    fn what_is_of_the_same_data_and_not_known_is_not_satisfied() {
        let copy = format!("db2{}.1", copy_of("db1.7"));
        assert_eq!((origin(&copy), origin("db1.7"), lineage(&copy)), ("db1", "db1", "db2-of-db1"));
        assert_eq!(copy_of(&copy), "-of-db1", "of the first, not of the copy");
        let standing = Standing { past: vec!["db1.7".into()], ..Standing::of(copy.as_str()) };
        let is_behind = |name: &str| standing.is_behind(&Token::of(name, Position::new(1)));
        assert!(is_behind("db3-of-db1.1"), "another copy, which is gone");
        assert!(is_behind("db1.8") && is_behind("db2-of-db1.2"));
        assert!(is_behind("journal-of-db1:3") && is_behind("journal-of-db2-of-db1:3"));
        assert!(!is_behind(&copy) && !is_behind("another.1") && !is_behind("journal-of-another:3"));
        assert!(!is_behind("db1.7") && standing.has_lost(&Token::of("db1.7", Position::new(1))));
    }

    #[test]
    fn what_was_overtaken_changes_nothing() {
        let now = Runtime::seeded(1).now();
        let known = Histories::new(Standing::of("db.1"));
        let changes = known.changes();
        let said = |generation| Standing {
            generation: Generation::new(generation),
            ..Standing::of("db.1")
        };
        known.heard(said(2), now);
        known.heard(said(1), now);
        assert_eq!(known.standing().generation.get(), 2);
        assert_eq!(*changes.borrow(), 1);
        assert_eq!(known.looked_at(), Some(now));
    }

    #[test]
    fn what_is_past_is_heard_also_of_the_history_that_is_known_by_name_alone() {
        let now = Runtime::seeded(1).now();
        let known = Histories::new(Standing::of("db.2"));
        let asked = Token::of("db.1", Position::new(1));
        assert!(known.check(&asked).is_ok(), "nothing is known of it");
        known.heard(Standing { past: vec!["db.1".into()], ..Standing::of("db.2") }, now);
        assert!(known.check(&asked).is_err());
        known.heard(Standing::of("db.2"), now);
        assert!(known.check(&asked).is_err(), "an answer that was overtaken");
    }

    #[tokio::test]
    async fn one_raise_serves_all_who_waited_for_it() {
        let known = Arc::new(Histories::new(Standing::of("db.1")));
        let (gate, raises) = (tokio::sync::Semaphore::new(0), AtomicU64::new(0));
        let raise = || {
            known.raise(|| async {
                raises.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.expect("open").forget();
                Ok(())
            })
        };
        let release = async {
            tokio::task::yield_now().await;
            gate.add_permits(2);
        };
        let (first, second, third, ()) = tokio::join!(raise(), raise(), raise(), release);
        assert!(first.is_ok() && second.is_ok() && third.is_ok());
        assert_eq!(raises.load(Ordering::Relaxed), 2, "its own, and one for both who waited");
    }
}
