//! Generations that the test raises, holds and fails.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::watch;

use super::faults::{Faults, unavailable};
use super::{FaultRates, Scripted, key};
use crate::{
    BoxFuture, Error, ErrorKind, Generations, Histories, Key, MemoryStore, Proof, ReadOptions,
    Result, Runtime, Standing, Store as _, Token,
};

/// The generations of a database that says what the test wants, as one instance hears of them.
///
/// Each call is counted when it begins, waits while the test holds its kind, and fails while the test
/// says so. [`ScriptedGenerations::instance`] is another instance over the same database.
#[derive(Debug)]
pub struct ScriptedGenerations {
    database: Arc<Database>,
    heard: Histories,
    looks: Gate,
    runtime: Runtime,
}

/// What all instances share.
#[derive(Debug)]
struct Database {
    standing: Mutex<Standing>,
    failing: AtomicBool,
    raises: Gate,
}

/// A door that the test closes, and how many have come to it.
#[derive(Debug)]
struct Gate {
    closed: watch::Sender<bool>,
    come: watch::Sender<usize>,
}

impl Gate {
    fn new() -> Self {
        Self { closed: watch::Sender::new(false), come: watch::Sender::new(0) }
    }

    async fn pass(&self) {
        self.come.send_modify(|come| *come += 1);
        let _ = self.closed.subscribe().wait_for(|closed| !closed).await;
    }

    async fn until(&self, count: usize) {
        let _ = self.come.subscribe().wait_for(|come| *come >= count).await;
    }

    fn count(&self) -> usize {
        *self.come.borrow()
    }
}

impl Default for ScriptedGenerations {
    fn default() -> Self {
        Self::of(Standing::of(Scripted::HISTORY))
    }
}

impl ScriptedGenerations {
    /// Of a database that says this; the instance has heard it, and has not looked yet.
    pub fn of(standing: Standing) -> Self {
        let database = Database {
            standing: Mutex::new(standing.clone()),
            failing: AtomicBool::new(false),
            raises: Gate::new(),
        };
        Self::over(Arc::new(database))
    }

    fn over(database: Arc<Database>) -> Self {
        let heard = Histories::new(database.standing().clone());
        Self { database, heard, looks: Gate::new(), runtime: Runtime::system() }
    }

    /// As another instance over the same database hears of it.
    #[must_use]
    pub fn instance(&self) -> Self {
        Self::over(Arc::clone(&self.database))
    }

    /// Changes what the database says of itself; an instance hears of it when it looks.
    pub fn change(&self, change: impl FnOnce(&mut Standing)) {
        change(&mut self.database.standing());
    }

    /// What the database says of itself.
    pub fn said(&self) -> Standing {
        self.database.standing().clone()
    }

    /// Lets every call fail, for every instance, or none any more.
    pub fn fail(&self, failing: bool) {
        self.database.failing.store(failing, Ordering::Release);
    }

    /// Lets raises wait, or go on.
    pub fn hold_raises(&self, held: bool) {
        self.database.raises.closed.send_replace(held);
    }

    /// Lets the looks of this instance wait, or go on.
    pub fn hold_looks(&self, held: bool) {
        self.looks.closed.send_replace(held);
    }

    /// How many raises have begun, by all instances.
    pub fn raises(&self) -> usize {
        self.database.raises.count()
    }

    /// How many looks of this instance have begun.
    pub fn looks(&self) -> usize {
        self.looks.count()
    }

    /// Waits until so many raises have begun.
    pub async fn until_raises(&self, count: usize) {
        self.database.raises.until(count).await;
    }

    /// Waits until so many looks of this instance have begun.
    pub async fn until_looks(&self, count: usize) {
        self.looks.until(count).await;
    }
}

impl Database {
    fn standing(&self) -> MutexGuard<'_, Standing> {
        // Every change is complete when a panic could happen.
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn up(&self) -> Result<()> {
        match self.failing.load(Ordering::Acquire) {
            true => Err(Error::new(ErrorKind::Unavailable, "the test says so")),
            false => Ok(()),
        }
    }
}

impl Generations for ScriptedGenerations {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.heard.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.heard.looked_at()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.heard.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let asked = self.runtime.now();
            self.looks.pass().await;
            self.database.up()?;
            self.heard.heard(self.said(), asked);
            Ok(())
        })
    }

    fn raise<'a>(&'a self, _: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let asked = self.runtime.now();
            self.database.raises.pass().await;
            self.database.up()?;
            self.change(|it| it.generation = crate::Generation::new(it.generation.get() + 1));
            self.heard.heard(self.said(), asked);
            Ok(())
        })
    }
}

/// The generations of a [`MemoryStore`] that several instances share, as one of them hears of them;
/// with faults, as its runtime's seed decides.
#[derive(Debug)]
pub struct FaultyGenerations {
    database: Arc<MemoryStore>,
    heard: Histories,
    faults: Faults,
    runtime: Runtime,
}

impl FaultyGenerations {
    /// Of this database, which has been looked at.
    ///
    /// # Errors
    /// Of the database.
    pub async fn new(
        database: Arc<MemoryStore>,
        rates: FaultRates,
        runtime: Runtime,
    ) -> Result<Self> {
        let standing = said(&database).await?;
        let faults = Faults { rates, runtime: runtime.clone() };
        Ok(Self { database, heard: Histories::new(standing), faults, runtime })
    }
}

/// What a database says of itself, as its answers show it.
async fn said(database: &MemoryStore) -> Result<Standing> {
    let reads = database.read(&[key("any")], &ReadOptions::default()).await?;
    let proof = reads.into_iter().find_map(|read| read.proof).ok_or_else(unavailable)?;
    Ok(Standing { generation: proof.generation, ..Standing::of(proof.history) })
}

#[deny(clippy::missing_trait_methods)]
impl Generations for FaultyGenerations {
    fn admits(&self, proof: &Proof, asked: Option<&Token>) -> bool {
        self.heard.admits(proof, asked)
    }

    fn looked_at(&self) -> Option<Instant> {
        self.heard.looked_at()
    }

    fn history(&self) -> Option<Arc<str>> {
        Some(self.heard.name())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.heard.changes()
    }

    fn look(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            let asked = self.runtime.now();
            self.faults.apply(said(&self.database)).await.map(|said| self.heard.heard(said, asked))
        })
    }

    fn raise<'a>(&'a self, keys: &'a [Key]) -> BoxFuture<'a, Result<()>> {
        Box::pin(async move {
            let asked = self.runtime.now();
            self.faults.apply(Generations::raise(&*self.database, keys)).await?;
            self.heard.heard(said(&self.database).await?, asked);
            Ok(())
        })
    }
}
