//! A client that does a bit of everything.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::Runtime;

use crate::{Answer, Client, Outcome};

/// How long a worker waits between two operations.
const GAP: Duration = Duration::from_millis(3);
/// How often a write of unknown outcome is sent again under its idempotency key.
const REPEATS: usize = 3;

/// One client of several instances: it reads with and without its token, writes, deletes, changes
/// on a condition, and repeats writes under an idempotency key.
///
/// Each value is its own (`name-number`), as the checkers want it.
#[derive(Debug)]
pub struct Worker {
    name: String,
    clients: Vec<Client>,
    keys: Vec<String>,
    random: Runtime,
    number: u64,
    /// The last answer of each key, whose token and version are sent back.
    last: BTreeMap<String, Answer>,
}

impl Worker {
    /// A worker under a name of its own. `random` decides what it does.
    ///
    /// # Panics
    /// At the first operation, when there are no clients or no keys.
    #[must_use]
    pub fn new(name: &str, clients: Vec<Client>, keys: Vec<String>, random: Runtime) -> Self {
        Self { name: name.to_owned(), clients, keys, random, number: 0, last: BTreeMap::new() }
    }

    /// Works until `over`, and ends the operation under way.
    pub async fn run(mut self, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            self.step().await;
            self.random.sleep(GAP).await;
        }
    }

    async fn step(&mut self) {
        let client = self.clients[self.draw(self.clients.len())].clone();
        let key = self.keys[self.draw(self.keys.len())].clone();
        let last = self.last.get(&key).cloned();
        let version = last.as_ref().and_then(|answer| answer.version);
        // Its own token, the one of another key (which must not harm anybody), or none.
        let other = self.last.values().nth(self.draw(self.last.len().max(1)));
        let read = match (self.draw(4), &last, other) {
            (0..2, Some(answer), _) | (2, _, Some(answer)) => client.read(&key).after(answer),
            _ => client.read(&key),
        };
        let value = self.value();
        let answer = match (self.draw(100), version) {
            (0..4, _) => read.strong().send().await,
            (4..55, _) => read.send().await,
            (55..60, _) => client.delete(&key).send().await,
            (60..70, Some(version)) => client.write(&key, &value).if_version(version).send().await,
            (70..73, _) => client.write(&key, &value).if_missing().send().await,
            (73..83, _) => self.write_once(&client, &key, &value).await,
            _ => client.write(&key, &value).send().await,
        };
        if answer.outcome == Outcome::Ok {
            self.last.insert(key, answer);
        }
    }

    /// Under an idempotency key; repeated while nobody knows what became of it, and now and then
    /// although it is known, through any instance.
    async fn write_once(&self, client: &Client, key: &str, value: &str) -> Answer {
        let mut answer = client.write(key, value).idempotency_key(value).send().await;
        for _ in 0..REPEATS {
            if answer.outcome != Outcome::Unknown && self.draw(3) > 0 {
                break;
            }
            let client = &self.clients[self.draw(self.clients.len())];
            answer = client.write(key, value).idempotency_key(value).send().await;
        }
        answer
    }

    fn value(&mut self) -> String {
        self.number += 1;
        format!("{}-{}", self.name, self.number)
    }

    fn draw(&self, below: usize) -> usize {
        usize::try_from(self.random.random() % below as u64).unwrap_or_default()
    }
}
