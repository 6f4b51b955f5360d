//! Two instances, each with a flusher, that crash at random over a journal and a database that fail,
//! as a seed decides.
//!
//! One writer a key writes growing numbers through either instance, sometimes waiting until they are
//! applied. Four things must hold: nothing acknowledged is lost; no number is applied twice, and none
//! after a later one; a read through the instance that accepted a write, and a read with its token
//! through any, is at least as new; when the faults are over, everything is applied.
//! `TERRACE_SEEDS=5000` runs that many seeds, `TERRACE_SEED=17` one.

use std::sync::Mutex;

use terrace_core::testkit::{FaultRates, FaultyStore, ScriptedGenerations};
use terrace_core::{Key, Token};

use super::faults::{Broken, FaultyJournal, Recorder, number};
use super::*;

const KEYS: usize = 3;
const STEPS: u64 = 25;

type Slot = Arc<Mutex<Arc<WriteBuffer>>>;

struct World {
    runtime: Runtime,
    database: Arc<MemoryStore>,
    journal: Arc<MemoryJournal>,
    applied: Arc<Mutex<Vec<(Key, u64)>>>,
    broken: Option<Broken>,
}

impl World {
    fn new(seed: u64, broken: Option<Broken>) -> Self {
        let runtime = Runtime::seeded(seed);
        let database = Arc::new(MemoryStore::new(runtime.clone()));
        let journal = journal(&runtime);
        Self { runtime, database, journal, applied: Arc::default(), broken }
    }

    fn flusher(&self) -> FlusherOptions {
        FlusherOptions {
            claim: usize::try_from(1 + self.runtime.random() % 8).unwrap(),
            pause: Duration::from_millis(self.runtime.random() % 30),
            batch_timeout: Duration::from_millis(200),
        }
    }

    async fn instance(&self, faults: u64) -> Arc<WriteBuffer> {
        let recorder = Recorder {
            inner: Arc::clone(&self.database),
            runtime: self.runtime.clone(),
            applied: Arc::clone(&self.applied),
            unguarded: self.broken == Some(Broken::Unguarded),
        };
        let longest = Duration::from_millis(3);
        let rates =
            FaultRates { delay: 300, error: faults, unknown: 0, reply_lost: faults, longest };
        let store = FaultyStore::new(Arc::new(recorder), rates, self.runtime.clone());
        let (inner, runtime) = (Arc::clone(&self.journal), self.runtime.clone());
        let journal =
            Arc::new(FaultyJournal { inner, runtime, rate: faults.into(), broken: self.broken });
        let options =
            WriteBufferOptions { flusher: Some(self.flusher()), ..WriteBufferOptions::default() };
        let runtime = self.runtime.clone();
        Arc::new(
            WriteBuffer::open(
                Arc::new(store),
                Arc::new(ScriptedGenerations::default()),
                journal,
                HISTORY,
                options,
                runtime,
            )
            .await,
        )
    }
}

fn of(slot: &Slot) -> Arc<WriteBuffer> {
    Arc::clone(&slot.lock().unwrap())
}

/// Writes one key and reads it back; answers the last number acknowledged, or a violation.
async fn client(world: Arc<World>, slots: [Slot; 2], index: usize) -> Result<u64, String> {
    let name = format!("key{index}");
    let mut acknowledged = 0;
    let mut token = Token::default();
    let mut last: Option<Arc<WriteBuffer>> = None;
    for step in 1..=STEPS {
        let draw = world.runtime.random();
        let instance = of(&slots[(draw & 1) as usize]);
        let batch = vec![Write::put(key(&name), value(step.to_string()))];
        let limit = Deadline::at(world.runtime.now() + Duration::from_secs(3));
        let how = WriteOptions {
            durability: (draw >> 4 & 7 == 0).then_some(Durability::Committed),
            deadline: limit,
            ..WriteOptions::default()
        };
        let wrote = instance.write(batch, &how).await;
        if let Ok(receipts) = wrote {
            acknowledged = step;
            token.merge(&receipts[0].token);
            last = Some(instance);
        }
        world.runtime.sleep(Duration::from_millis(world.runtime.random() % 4)).await;
        let with =
            ReadOptions { token: Some(token.clone()), deadline: limit, ..Default::default() };
        let found = text(&*of(&slots[(draw >> 1 & 1) as usize]), &name, &with).await;
        if let Ok(found) = found {
            let found = number(&found.unwrap_or_default());
            if found < acknowledged {
                return Err(format!("{name}: a token of {acknowledged} was answered {found}"));
            }
        }
        if let Some(instance) = &last
            && draw >> 8 & 1 == 0
            && let Ok(found) = text(&**instance, &name, &ReadOptions::default()).await
        {
            let found = number(&found.unwrap_or_default());
            if found < acknowledged {
                return Err(format!("{name}: {acknowledged} was accepted here, {found} was read"));
            }
        }
    }
    Ok(acknowledged)
}

/// Replaces instances, which ends their flushers in mid-work.
async fn crashes(world: Arc<World>, slots: [Slot; 2]) {
    loop {
        world.runtime.sleep(Duration::from_millis(5 + world.runtime.random() % 40)).await;
        let fresh = world.instance(50).await;
        *slots[(world.runtime.random() & 1) as usize].lock().unwrap() = fresh;
        if world.runtime.random().is_multiple_of(3) {
            world.journal.forget_claims();
        }
    }
}

async fn run(seed: u64, broken: Option<Broken>) -> Result<(), String> {
    let world = Arc::new(World::new(seed, broken));
    let slot = |instance| Arc::new(Mutex::new(instance));
    let slots: [Slot; 2] = [slot(world.instance(50).await), slot(world.instance(50).await)];
    let clients = (0..KEYS).map(|index| client(Arc::clone(&world), slots.clone(), index));
    let acknowledged = tokio::select! {
        done = futures_util::future::try_join_all(clients) => done?,
        () = crashes(Arc::clone(&world), slots.clone()) => Vec::new(),
    };
    // The faults are over.
    for slot in &slots {
        let sound = world.instance(0).await;
        *slot.lock().unwrap() = sound;
    }
    let patience = world.runtime.now() + Duration::from_secs(120);
    while world.journal.progress().await.unwrap().writes > 0 {
        if world.runtime.now() > patience {
            return Err("the journal is not drained".into());
        }
        world.runtime.sleep(Duration::from_millis(50)).await;
    }
    // Late commits of flushers that are gone.
    world.runtime.sleep(Duration::from_secs(4)).await;
    check(&world, &acknowledged).await
}

async fn check(world: &World, acknowledged: &[u64]) -> Result<(), String> {
    let applied = world.applied.lock().unwrap().clone();
    for (index, floor) in acknowledged.iter().enumerate() {
        let name = key(format!("key{index}"));
        let numbers: Vec<_> =
            applied.iter().filter(|(key, _)| *key == name).map(|(_, number)| *number).collect();
        if !numbers.is_sorted_by(|a, b| a < b) {
            return Err(format!("{name}: applied in the order {numbers:?}"));
        }
        let record = world.database.get(&name).await.unwrap();
        let found = record.map_or(0, |record| number(record.value.as_str()));
        if found < *floor {
            return Err(format!("{name}: {floor} was acknowledged, {found} is there"));
        }
    }
    match world.journal.progress().await.unwrap().dead {
        0 => Ok(()),
        dead => Err(format!("{dead} dead letters")),
    }
}

fn in_simulated_time(seed: u64, broken: Option<Broken>) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(run(seed, broken))
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

#[test]
fn no_seed_loses_doubles_or_reorders_a_write() {
    let seeds = match setting("TERRACE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..setting("TERRACE_SEEDS").unwrap_or(300),
    };
    for seed in seeds {
        if let Err(violation) = in_simulated_time(seed, None) {
            panic!("TERRACE_SEED={seed}: {violation}");
        }
    }
}

/// Each rule that is broken is noticed, by the check that is there for it.
mod mutants {
    use super::*;

    fn noticed(broken: Broken) -> String {
        (0..300)
            .find_map(|seed| in_simulated_time(seed, Some(broken)).err())
            .expect("no seed of 300 notices it")
    }

    #[test]
    fn settling_before_the_commit_is_noticed() {
        let violation = noticed(Broken::SettlesFirst);
        let lost = violation.contains("is there") || violation.contains("answered");
        assert!(lost || violation.contains("was read"), "{violation}");
    }

    #[test]
    fn applying_without_the_guard_is_noticed() {
        // By the order of what was applied, or first by somebody who reads it.
        let violation = noticed(Broken::Unguarded);
        let seen = ["in the order", "answered", "was read", "is there"];
        assert!(seen.iter().any(|words| violation.contains(words)), "{violation}");
    }

    #[test]
    fn forgetting_before_the_commit_is_noticed() {
        let violation = noticed(Broken::ForgetsEarly);
        assert!(violation.contains("was read") || violation.contains("answered"), "{violation}");
    }
}
