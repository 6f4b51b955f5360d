//! Servers that say and do what the test wants.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use terrace_core::{
    BoxFuture, Deadline, Error, ErrorKind, Generation, Generations, Inspection, Key, MemoryStore,
    Node, NodeState, Page, Position, Proof, Read, ReadOptions, Receipt, Result, Role, Runtime,
    Scan, Standing, Store, Version, Write, WriteOptions,
};
use terrace_layers::{Member, ReplicaRouter, ReplicaRouterOptions};
use tokio::sync::watch;

pub(super) const HISTORY: &str = "db.1";

/// The standing of this life of the database; each promotion begins another.
pub(super) fn life(number: u64) -> Standing {
    let past = (1..number).map(|past| format!("db.{past}").into()).collect();
    Standing { past, ..Standing::of(format!("db.{number}")) }
}

#[derive(Debug)]
struct Server {
    number: usize,
    memory: Option<Arc<MemoryStore>>,
    state: Mutex<NodeState>,
    /// What its answers show, where that is not what it says of itself.
    shows: Mutex<Option<NodeState>>,
    /// What it says and shows in place of the truth.
    lie: Mutex<Option<fn(&mut NodeState)>>,
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
    /// All of them at position 100 of the first life.
    pub(super) fn new(count: usize) -> Self {
        Self((0..count).map(|number| Arc::new(Server::new(number, None))).collect())
    }

    /// Three servers over one memory.
    pub(super) fn over_memory() -> Self {
        let memory = Arc::new(MemoryStore::new(Runtime::system()));
        let server = |number| Arc::new(Server::new(number, Some(Arc::clone(&memory))));
        Self((0..3).map(server).collect())
    }

    /// The history of the first of them.
    pub(super) async fn history(&self) -> Arc<str> {
        self.0[0].state(Deadline::NEVER).await.unwrap().standing.history
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

    /// It has come to this position of this life: the first of them as a primary, others as replicas.
    pub(super) fn at(&self, number: usize, life: u64, position: u64) {
        let role = if number == 0 { Role::Primary } else { Role::Replica };
        self.change(number, |state| come(state, role, life, position));
    }

    /// It takes writes in this life, on the timeline of that number, from this position on.
    pub(super) fn promote(&self, number: usize, life: u64, position: u64) {
        self.change(number, |state| come(state, Role::Primary, life, position));
    }

    /// Its answers show this from now on, whatever it says of itself.
    pub(super) fn show(&self, number: usize, life: u64, position: u64) {
        let mut shown = self.0[number].state.lock().unwrap().clone();
        let role = shown.role;
        come(&mut shown, role, life, position);
        *self.0[number].shows.lock().unwrap() = Some(shown);
    }

    /// It says and shows this from now on, whatever is true.
    pub(super) fn lie(&self, number: usize, lie: fn(&mut NodeState)) {
        *self.0[number].lie.lock().unwrap() = Some(lie);
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

fn come(state: &mut NodeState, role: Role, number: u64, position: u64) {
    let (standing, position, log_end) = (life(number), Position::new(position), position);
    *state = NodeState { role, standing, timeline: number, position, log_end, ..state.clone() };
}

impl Server {
    fn new(number: usize, memory: Option<Arc<MemoryStore>>) -> Self {
        let state = NodeState {
            role: if number == 0 { Role::Primary } else { Role::Replica },
            life: 1 + number as u64,
            standing: life(1),
            timeline: 1,
            position: Position::new(100),
            log_end: 100,
            committed_ago: None,
        };
        Self {
            number,
            memory,
            state: Mutex::new(state),
            shows: Mutex::default(),
            lie: Mutex::default(),
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
        let shows = self.shows.lock().unwrap().clone();
        Ok(shows.unwrap_or_else(|| self.said()))
    }

    fn said(&self) -> NodeState {
        let mut state = self.state.lock().unwrap().clone();
        if let Some(lie) = *self.lie.lock().unwrap() {
            lie(&mut state);
        }
        state
    }

    /// What it proves when it answers in this state.
    fn proof(state: NodeState) -> Proof {
        let Standing { history, generation, .. } = state.standing;
        Proof { history, generation, through: state.position, shown: Position::NONE }
    }
}

impl Node for Server {
    fn state(&self, _: Deadline) -> BoxFuture<'_, Result<NodeState>> {
        Box::pin(async move {
            if self.silent.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let state = self.said();
            let Some(memory) = &self.memory else { return Ok(state) };
            // As its answers show it.
            let reads = memory.read(&[Key::new("any")?], &ReadOptions::default()).await?;
            let proof = reads[0].proof.clone().expect("a proof");
            let standing = Standing::of(proof.history);
            let standing = Standing { generation: proof.generation, ..standing };
            let (position, log_end) = (proof.through, proof.through.get());
            Ok(NodeState { standing, position, log_end, ..state })
        })
    }

    fn raise(&self) -> BoxFuture<'_, Result<Standing>> {
        Box::pin(async move {
            if let Some(memory) = &self.memory {
                Generations::raise(&**memory, &[]).await?;
                return Ok(self.state(Deadline::NEVER).await?.standing);
            }
            let state = self.answer().await?;
            if state.role == Role::Replica {
                return Err(Error::new(ErrorKind::Unavailable, "a replica"));
            }
            let mut state = self.state.lock().unwrap();
            let generation = state.standing.generation.get() + 1;
            state.standing.generation = Generation::new(generation);
            Ok(state.standing.clone())
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
            let proof = Self::proof(state);
            let read = Read {
                record: None,
                version: Version::NONE,
                origin: terrace_core::Origin::PRIMARY,
                age: Duration::ZERO,
                token: proof.token(),
                proof: Some(proof),
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
                token: Self::proof(state).token(),
                origin: terrace_core::Origin::PRIMARY,
                event: None,
                cached: false,
            };
            Ok(vec![receipt; batch.len()])
        })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            if let Some(memory) = &self.memory {
                return memory.scan(scan, how).await;
            }
            let proof = Self::proof(self.answer().await?);
            let asked = how.token.as_ref().and_then(|token| token.position(&proof.history));
            if asked.is_some_and(|asked| asked > proof.through) {
                return Err(terrace_core::history::behind());
            }
            let page = Page::cut(Vec::new(), scan.limit, terrace_core::Origin::PRIMARY);
            Ok(page.proving(proof.token()))
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
