//! A server whose answers to one instance are lost for a while.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard};

use terrace_core::{Deadline, Idempotency, Task};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Passes everything on to the server, and its answers back unless they are to be lost.
struct Proxy {
    port: u16,
    losing: Arc<AtomicBool>,
    _accept: Task,
}

impl Proxy {
    async fn before(server: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let losing = Arc::new(AtomicBool::new(false));
        let lost = Arc::clone(&losing);
        let runtime = Runtime::system();
        let spawn = runtime.clone();
        let accept = async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                let server = TcpStream::connect(&server).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                let there = async move {
                    let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
                };
                spawn.spawn("requests", there).detach();
                let lost = Arc::clone(&lost);
                let back = async move {
                    let mut some = vec![0; 64 * 1024];
                    let mut broken = false;
                    while let Ok(count @ 1..) = from_server.read(&mut some).await {
                        if lost.load(Ordering::Acquire) {
                            broken = true;
                            continue;
                        }
                        // What was lost would be missing from the stream.
                        if broken || to_client.write_all(&some[..count]).await.is_err() {
                            return;
                        }
                    }
                };
                spawn.spawn("answers", back).detach();
            }
        };
        let accept = runtime.spawn("proxy", accept);
        Self { port, losing, _accept: accept }
    }
}

/// What somebody has of the journal.
#[derive(Default)]
struct Known {
    acknowledged: BTreeSet<Sequence>,
    /// Somebody has begun to settle it.
    settled: BTreeSet<Sequence>,
    /// Of each instance: up to where it knows all there is, and what it has.
    seen: [Sequence; 2],
    has: [BTreeSet<Sequence>; 2],
}

/// Two instances on one journal, as a `WriteBuffer` uses it, and what they know.
struct World {
    journals: [NatsJournal; 2],
    known: Mutex<Known>,
    over: AtomicBool,
    runtime: Runtime,
}

fn sequences(entries: &[terrace_core::JournalEntry]) -> Vec<Sequence> {
    let of = |entry: &terrace_core::JournalEntry| {
        let first = entry.first;
        (0..entry.writes.len() as u64).map(move |number| first.plus(number))
    };
    entries.iter().flat_map(of).collect()
}

impl World {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap()
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    async fn pause(&self, millis: u64) {
        self.runtime.sleep(Duration::from_millis(millis)).await;
    }

    /// Appends, and repeats what has no answer; every other request has an idempotency key.
    async fn append(&self, number: usize, lane: u64) {
        for step in 0u64.. {
            let request = |part: u64| {
                let name = format!("{number}-{lane}-{step}-{part}");
                let named = || Arc::new(Idempotency::new(&name, [1; 32]).unwrap());
                Append { idempotency: (part % 2 == 1).then(named), ..put(&name) }
            };
            let requests: Vec<_> = (0..=step % 4).map(request).collect();
            for _ in 0..3 {
                self.pause(4).await;
                let Ok(appended) = self.journals[number].append(requests.clone()).await else {
                    continue;
                };
                let mut known = self.known();
                for span in appended.spans.iter().flatten() {
                    known.acknowledged.insert(span.first);
                    known.has[number].insert(span.first);
                }
                if known.seen[number] == appended.previous {
                    known.seen[number] = appended.last;
                }
                if appended.spans.iter().all(Result::is_ok) {
                    break;
                }
            }
            if !self.goes_on() {
                return;
            }
        }
    }

    async fn flush(&self, number: usize) {
        let journal = &self.journals[number];
        while self.goes_on() {
            let wait = Deadline::at(self.runtime.now() + Duration::from_millis(100));
            let claimed = journal.claim(100_000, wait).await;
            self.pause(5).await;
            let Ok(entries) = claimed else { continue };
            self.known().settled.extend(sequences(&entries));
            let done: Vec<_> = entries.iter().map(Settled::of).collect();
            for _ in 0..3 {
                if journal.settle(done.clone()).await.is_ok() {
                    break;
                }
            }
        }
    }

    /// Asks how far the journal has come, and looks up what it lacks.
    async fn check(&self, number: usize) {
        let journal = &self.journals[number];
        while self.goes_on() {
            self.pause(1).await;
            let Ok(progress) = journal.progress().await else { continue };
            let seen = self.known().seen[number];
            let entries = journal.peek(seen, 1_000_000).await;
            let mut known = self.known();
            if let Ok(entries) = entries {
                known.has[number].extend(sequences(&entries));
                known.seen[number] = known.seen[number].max(progress.last);
            }
            for sequence in known.acknowledged.difference(&known.settled) {
                assert!(*sequence > progress.applied, "{sequence} is not applied: {progress:?}");
                let seen = *sequence <= known.seen[number];
                assert!(!seen || known.has[number].contains(sequence), "{sequence} was missed");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_called_applied_or_known_that_is_not() {
    let url = testing::nats().url();
    let (login, address) = url.rsplit_once('@').expect("a login in the URL");
    let proxy = Proxy::before(address.trim_end_matches('/').to_owned()).await;
    let through = NatsJournalOptions {
        command_timeout: Duration::from_millis(300),
        limits: terrace_core::JournalLimits::default(),
        ..options(format!("{login}@127.0.0.1:{}", proxy.port))
    };
    let direct = NatsJournalOptions { url, ..through.clone() };
    let (known, over, runtime) = (Mutex::default(), AtomicBool::new(false), Runtime::system());
    let journals = [connect(through).await, connect(direct).await];
    let world = World { journals, known, over, runtime };
    let faults = async {
        for _ in 0..3 {
            world.pause(300).await;
            proxy.losing.store(true, Ordering::Release);
            world.pause(500).await;
            proxy.losing.store(false, Ordering::Release);
        }
        world.over.store(true, Ordering::Relaxed);
    };
    let work = [0, 1].map(|number| {
        let world = &world;
        async move {
            let appends = join_all((0..3).map(|lane| world.append(number, lane)));
            tokio::join!(appends, world.flush(number), world.check(number))
        }
    });
    tokio::join!(faults, join_all(work));
    assert!(world.known().settled.len() > 100, "they were at work");
}
