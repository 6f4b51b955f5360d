//! Sessions that write, read, and check what they were promised.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use terrace_core::testkit::{key, value};
use terrace_core::{
    Consistency, Deadline, Read, ReadOptions, Receipt, Store, StoreExt as _, Token, Write,
    WriteOptions, one,
};

pub(super) const SESSIONS: usize = 8;

/// What all sessions do and have found.
pub(super) struct Load {
    store: Arc<dyn Store>,
    /// Reads that were answered.
    pub(super) reads: AtomicUsize,
    /// Of those, by replicas.
    pub(super) by_replicas: AtomicUsize,
    /// Answers older than what their session had written or seen.
    pub(super) violations: AtomicUsize,
    /// Reads that were not answered.
    pub(super) failed: AtomicUsize,
    /// The last number of each session's key that was acknowledged.
    acknowledged: [AtomicU64; SESSIONS],
    stop: AtomicBool,
}

/// A client that sends back the token of its last answer.
struct Session {
    load: Arc<Load>,
    own: usize,
    token: Token,
    /// What it has seen of each key.
    seen: [u64; SESSIONS],
    written: u64,
}

impl Load {
    pub(super) fn over(store: Arc<dyn Store>) -> Arc<Self> {
        Arc::new(Self {
            store,
            reads: AtomicUsize::new(0),
            by_replicas: AtomicUsize::new(0),
            violations: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            acknowledged: Default::default(),
            stop: AtomicBool::new(false),
        })
    }

    /// Starts all sessions; they run until [`Load::end`].
    pub(super) fn start(self: &Arc<Self>) -> Vec<tokio::task::JoinHandle<()>> {
        let session = |own| Session {
            load: Arc::clone(self),
            own,
            token: Token::default(),
            seen: [0; SESSIONS],
            written: self.acknowledged[own].load(Ordering::SeqCst),
        };
        (0..SESSIONS).map(|own| tokio::spawn(session(own).run())).collect()
    }

    /// Lets so many reads pass.
    pub(super) async fn go_on(&self, reads: usize) {
        let enough = self.count() + reads;
        while self.count() < enough {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    pub(super) async fn end(&self, sessions: Vec<tokio::task::JoinHandle<()>>) {
        self.stop.store(true, Ordering::SeqCst);
        for session in sessions {
            session.await.expect("a session ends in order");
        }
    }

    fn count(&self) -> usize {
        self.reads.load(Ordering::SeqCst) + self.failed.load(Ordering::SeqCst)
    }

    /// Acknowledged writes that are gone.
    pub(super) async fn lost(&self) -> usize {
        let mut lost = 0;
        for (number, acknowledged) in self.acknowledged.iter().enumerate() {
            let how = ReadOptions::strong(Deadline::NEVER);
            let read = self.store.get_read(&name(number), &how).await.expect("a strong read");
            lost += usize::from(number_of(&read) < acknowledged.load(Ordering::SeqCst));
        }
        lost
    }
}

impl Session {
    async fn run(mut self) {
        while !self.load.stop.load(Ordering::SeqCst) {
            self.write().await;
            // Its own key, then those of others, on whichever replica.
            for step in 0..SESSIONS * 2 {
                self.read((self.own + step) % SESSIONS).await;
            }
        }
    }

    async fn write(&mut self) {
        let next = self.written + 1;
        let batch = vec![Write::put(name(self.own), value(next.to_string()))];
        let written = self.load.store.write(batch, &WriteOptions::default()).await;
        // Applied or not, the next number is greater.
        self.written = next;
        if let Ok(Receipt { token, .. }) = written.and_then(one) {
            // A replica may show what its primary has not acknowledged yet. If another is promoted,
            // that is lost, and tokens of the old history are refused, as their message says. What was
            // acknowledged is looked at in the end.
            if self.is_of_another_history(&token) {
                self.seen = [0; SESSIONS];
                self.token = Token::default();
            }
            self.token.merge(&token);
            self.seen[self.own] = next;
            self.load.acknowledged[self.own].store(next, Ordering::SeqCst);
        }
    }

    fn is_of_another_history(&self, token: &Token) -> bool {
        let mut own = self.token.marks().map(|(name, _)| name);
        own.any(|name| token.position(name).is_none())
    }

    async fn read(&mut self, number: usize) {
        let how = ReadOptions {
            consistency: Consistency::Default,
            token: Some(self.token.clone()),
            deadline: Deadline::NEVER,
            ..ReadOptions::default()
        };
        let Ok(read) = self.load.store.get_read(&name(number), &how).await else {
            self.load.failed.fetch_add(1, Ordering::SeqCst);
            return;
        };
        let found = number_of(&read);
        if found < self.seen[number] {
            self.load.violations.fetch_add(1, Ordering::SeqCst);
        }
        self.seen[number] = found.max(self.seen[number]);
        self.token.merge(&read.token);
        let replica = read.origin.replica.is_some();
        self.load.by_replicas.fetch_add(usize::from(replica), Ordering::SeqCst);
        self.load.reads.fetch_add(1, Ordering::SeqCst);
    }
}

fn name(number: usize) -> terrace_core::Key {
    key(format!("session {number}"))
}

fn number_of(read: &Read) -> u64 {
    read.record.as_ref().map_or(0, |record| record.value.as_str().parse().expect("a number"))
}
