//! Servers that say and do what the test wants.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Inspection, Key, MemoryStore, Node, NodeState, Page,
    LogPosition, Read, ReadOptions, Receipt, Result, Role, Runtime, Scan, Store, Token, Version,
    Write, WriteOptions,
};
use terrace_layers::{Member, ReplicaRouter, ReplicaRouterOptions};
use tokio::sync::watch;

pub(super) const HISTORY: &str = "db";
pub(super) const LOG: &str = "db:wal";

#[derive(Debug)]
struct Server {
    number: usize,
    memory: Option<Arc<MemoryStore>>,
    state: Mutex<NodeState>,
    silent: AtomicBool,
    failing: AtomicBool,
    held: watch::Sender<bool>,
    asked: watch::Sender<usize>,
    written: AtomicUsize,
    admitted: AtomicU64,
}

/// A primary, number 0, and its replicas.
#[derive(Debug)]
pub(super) struct Servers(Vec<Arc<Server>>);

impl Servers {
    /// All of them at place 100 of timeline 1.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).map(|number| Arc::new(Server::new(number, LOG, None))).collect())
    }

    /// Three servers over one memory, whose positions are versions.
    pub(super) fn over_memory() -> Self {
        let memory = Arc::new(MemoryStore::new(Runtime::system()));
        let server = |number| Arc::new(Server::new(number, HISTORY, Some(Arc::clone(&memory))));
        Self((0..3).map(server).collect())
    }

    pub(super) fn members(&self) -> Vec<Member> {
        let member = |server: &Arc<Server>| Member {
            store: Arc::clone(server) as _,
            node: Arc::clone(server) as _,
        };
        self.0.iter().map(member).collect()
    }

    pub(super) async fn router(&self) -> ReplicaRouter {
        self.router_with(ReplicaRouterOptions::default()).await
    }

    pub(super) async fn router_with(&self, options: ReplicaRouterOptions) -> ReplicaRouter {
        let runtime = Runtime::seeded(7);
        ReplicaRouter::start(HISTORY.into(), self.members(), options, runtime).await
    }

    pub(super) fn change(&self, number: usize, change: impl FnOnce(&mut NodeState)) {
        change(&mut self.0[number].state.lock().unwrap());
    }

    /// As what it is unless it is no primary, it has come to here.
    pub(super) fn at(&self, number: usize, epoch: u64, offset: u64) {
        self.change(number, |state| {
            state.position = LogPosition { epoch, offset };
            state.role = if number == 0 { Role::Primary } else { Role::Replica };
        });
    }

    pub(super) fn promote(&self, number: usize, epoch: u64, offset: u64, forks: &[LogPosition]) {
        self.change(number, |state| {
            state.role = Role::Primary;
            state.position = LogPosition { epoch, offset };
            state.forks = forks.to_vec();
        });
    }

    pub(super) fn silence(&self, number: usize, silent: bool) {
        self.0[number].silent.store(silent, Ordering::SeqCst);
    }

    pub(super) fn fail(&self, number: usize, failing: bool) {
        self.0[number].failing.store(failing, Ordering::SeqCst);
    }

    /// Its reads wait from now on.
    pub(super) fn hold(&self, number: usize) {
        self.0[number].held.send_replace(true);
    }

    pub(super) fn release(&self, number: usize) {
        self.0[number].held.send_replace(false);
    }

    pub(super) fn asked(&self, number: usize) -> usize {
        *self.0[number].asked.borrow()
    }

    pub(super) async fn until_asked(&self, number: usize) {
        let mut asked = self.0[number].asked.subscribe();
        let before = *asked.borrow_and_update();
        if before == 0 {
            asked.changed().await.unwrap();
        }
    }

    pub(super) fn written(&self, number: usize) -> usize {
        self.0[number].written.load(Ordering::SeqCst)
    }

    pub(super) fn admitted(&self, number: usize) -> u64 {
        self.0[number].admitted.load(Ordering::SeqCst)
    }
}

impl Server {
    fn new(number: usize, log: &str, memory: Option<Arc<MemoryStore>>) -> Self {
        let state = NodeState {
            role: if number == 0 { Role::Primary } else { Role::Replica },
            life: 1,
            history: HISTORY.into(),
            log: log.into(),
            position: LogPosition { epoch: 1, offset: 100 },
            forks: Vec::new(),
        };
        Self {
            number,
            memory,
            state: Mutex::new(state),
            silent: AtomicBool::new(false),
            failing: AtomicBool::new(false),
            held: watch::Sender::new(false),
            asked: watch::Sender::new(0),
            written: AtomicUsize::new(0),
            admitted: AtomicU64::new(0),
        }
    }

    async fn answer(&self) -> Result<NodeState> {
        self.asked.send_modify(|asked| *asked += 1);
        let _ = self.held.subscribe().wait_for(|held| !held).await;
        if self.failing.load(Ordering::SeqCst) {
            return Err(Error::new(ErrorKind::Unavailable, "the test says so"));
        }
        Ok(self.state.lock().unwrap().clone())
    }
}

impl Node for Server {
    fn state(&self, _: Deadline) -> BoxFuture<'_, Result<NodeState>> {
        Box::pin(async move {
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            Ok(self.state.lock().unwrap().clone())
        })
    }

    fn admit(&self, state: &NodeState) {
        self.admitted.store(state.life, Ordering::SeqCst);
    }
}

impl Store for Server {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            if let Some(memory) = &self.memory {
                return memory.read(keys, how).await;
            }
            let state = self.answer().await?;
            let read = Read {
                record: None,
                version: Version::NONE,
                origin: terrace_core::Origin::Primary,
                age: Duration::ZERO,
                token: Token::of(state.log, state.position),
            };
            Ok(vec![read; keys.len()])
        })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move {
            if let Some(memory) = &self.memory {
                return memory.write(batch, how).await;
            }
            let state = self.answer().await?;
            if state.role == Role::Replica {
                return Err(Error::new(ErrorKind::Unavailable, "a replica"));
            }
            self.written.fetch_add(batch.len(), Ordering::SeqCst);
            let receipt = Receipt {
                outcome: terrace_core::Outcome::Created,
                version: Version::new(1),
                durability: terrace_core::Durability::Committed,
                token: Token::of(state.log, state.position),
                origin: terrace_core::Origin::Primary,
            };
            Ok(vec![receipt; batch.len()])
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            if let Some(memory) = &self.memory {
                return memory.scan(scan, how).await;
            }
            self.answer().await?;
            Ok(Page::cut(Vec::new(), scan.limit, terrace_core::Origin::Primary))
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async { Inspection::new("server") })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match &self.memory {
                Some(memory) => memory.close().await,
                None => Ok(()),
            }
        })
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "server {}", self.number)
    }
}
