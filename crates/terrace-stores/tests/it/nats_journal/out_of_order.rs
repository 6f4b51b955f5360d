//! Entries that are settled in any order: what the journal says of the rest, beside a model.

use std::collections::{BTreeMap, BTreeSet};

use terrace_core::testkit::journal_contract::request;
use terrace_core::testkit::{key, value};
use terrace_core::{
    DeadLetter, Deadline, Journal as _, JournalEntry, Runtime, Sequence, Settled, Write,
};
use terrace_lab::testing;
use terrace_stores::NatsJournal;

use super::{connect, options};

/// What there must be, and what of it this test has claimed.
#[derive(Default)]
struct Model {
    last: Sequence,
    /// How many writes each entry has.
    waiting: BTreeMap<Sequence, u64>,
    claimed: BTreeMap<Sequence, JournalEntry>,
    dead: BTreeSet<Sequence>,
}

impl Model {
    async fn append(&mut self, journal: &NatsJournal, count: u64) {
        let writes = (0..count).map(|n| Write::put(key(format!("k{n}")), value("1"))).collect();
        let appended = journal.append(vec![request(writes)]).await.expect("an append");
        let first = appended.spans[0].as_ref().expect("a place").first;
        assert_eq!(appended.previous, self.last, "nobody else appends");
        assert!(first > self.last, "no sequence is given out twice");
        self.last = appended.last;
        self.waiting.insert(first, count);
    }

    /// Claims so many more, of what there is; the journal gives few at once.
    async fn claim(&mut self, journal: &NatsJournal, count: usize) {
        let wanted = self.waiting.len().min(self.claimed.len() + count);
        let wait = Deadline::at(Runtime::system().now() + std::time::Duration::from_secs(30));
        while self.claimed.len() < wanted {
            let claimed = journal.claim(1, wait).await.expect("a claim");
            assert!(!claimed.is_empty(), "there are some");
            // What was claimed before and is not settled may come again.
            self.claimed.extend(claimed.into_iter().map(|entry| (entry.id, entry)));
        }
    }

    async fn settle(&mut self, journal: &NatsJournal, ids: Vec<Sequence>, dies: bool) {
        let mut done = Vec::new();
        for id in ids {
            let entry = self.claimed.remove(&id).expect("it is claimed");
            self.waiting.remove(&id);
            let mut settled = Settled::of(&entry);
            if dies {
                let write = entry.writes[0].clone();
                settled.dead.push(DeadLetter { sequence: id, write, reason: "no".into() });
                self.dead.insert(id);
            }
            done.push(settled);
        }
        journal.settle(done).await.expect("a settlement");
    }

    async fn check(&self, journal: &NatsJournal, step: u64) {
        let found = journal.progress().await.expect("progress");
        let applied = self.waiting.keys().next().map_or(self.last, |first| first.before());
        let dead = self.dead.first().map_or(applied, |first| first.before());
        assert_eq!(
            (found.last, found.applied, found.settled, found.writes, found.dead),
            (
                self.last,
                applied,
                applied.min(dead),
                self.waiting.values().sum(),
                self.dead.len() as u64
            ),
            "step {step}: {:?}",
            self.waiting
        );
    }
}

/// Two instances: one does the work, the other looks.
async fn any_order(seed: u64, steps: u64) {
    let runtime = Runtime::seeded(seed);
    let options = options(testing::nats().url());
    let (one, two) = (connect(options.clone()).await, connect(options).await);
    let mut model = Model::default();
    for step in 0..steps {
        let draw = runtime.random();
        match draw % 10 {
            0..5 => model.append(&one, [1, 1, 1, 2, 3][(draw >> 8) as usize % 5]).await,
            5 => model.claim(&one, [1, 5, 20][(draw >> 8) as usize % 3]).await,
            6 if draw >> 8 & 7 == 0 && !model.dead.is_empty() => {
                let buried = model.dead.pop_last().expect("there are some");
                one.bury(vec![buried]).await.expect("a burial");
            }
            _ => {
                let count = [1, 1, 3, 10][(draw >> 8) as usize % 4];
                let mut ids: Vec<_> = model.claimed.keys().copied().collect();
                while ids.len() > count {
                    ids.swap_remove(usize::try_from(runtime.random()).unwrap_or(0) % ids.len());
                }
                model.settle(&one, ids, draw >> 16 & 63 == 0).await;
            }
        }
        model.check(&two, step).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_is_told_whatever_the_order_was() {
    let setting = |name| std::env::var(name).ok().and_then(|text: String| text.parse().ok());
    let steps = setting("TERRACE_STEPS").unwrap_or(1500);
    any_order(setting("TERRACE_SEED").unwrap_or(1), steps).await;
}
