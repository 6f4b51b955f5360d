//! What the live page shows: all levels of this process, as they are now, and what it can be told to do.
//!
//! Twice a second, and only while somebody looks, every level is asked for its [`Inspection`]: the tree that
//! `/health`, `/stats` and `/metrics` are made from, too. So the page has no figures of its own, and cannot
//! differ from them.
//!
//! | file | what |
//! |---|---|
//! | `looks` | a tree as a list of parts, with a list of numbers that belong to them |
//! | `frames` | looks in their order: what changed since the one before, numbered, within a size |
//! | `traffic` | requests that the page asks for, and what a level answers to them |
//! | `oracle` | judges each of those answers beside what the level claims |
//! | `faults` | stops a private server for a stated time |
//!
//! Nothing here knows HTTP: that is `http::live`, which also says who may ask for what.
//!
//! Where nobody looks, nothing runs: the loop ends with the last one who looks, and ends all traffic.

mod faults;
mod frames;
mod looks;
mod oracle;
mod traffic;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use serde::Serialize;
use serde_json::json;
use terrace_core::{BoxFuture, Inspection, Result, Runtime, Status, Store, Unit};
use tokio::sync::broadcast;

use crate::http::{Face, Service, Values, Whole};
use crate::levels::{Level, Servers};

use faults::Faults;
pub(crate) use frames::Frame;
use frames::{Frames, News};
use looks::Look;
pub(crate) use oracle::Violation;
use traffic::Traffic;
pub(crate) use traffic::{Order, Profile, Refused};

/// How often levels are looked at.
pub(crate) const EVERY: Duration = Duration::from_millis(500);

/// Looks that wait for somebody who takes them slowly; who takes them more slowly begins anew.
const WAITING: usize = 16;

/// A level that is served by this process.
#[derive(Debug)]
pub struct Watched {
    /// Which.
    pub level: &'static Level,
    /// Where a browser reaches it.
    pub url: String,
    /// Whether its requests need a key.
    pub keyed: bool,
    /// What it serves.
    pub service: Service,
}

/// All that the page shows and does.
#[derive(Debug)]
pub struct Live {
    levels: Vec<Shown>,
    faults: Faults,
    frames: Mutex<Frames>,
    news: broadcast::Sender<Arc<Frame>>,
    token: String,
    began: Instant,
    runtime: Runtime,
}

#[derive(Debug)]
struct Shown {
    watched: Watched,
    traffic: Option<Traffic>,
}

/// Something that happened, for the axis of time.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Mark {
    /// When, in milliseconds since the page's server began.
    at: u64,
    /// The level that it is about; none: several.
    level: Option<u8>,
    /// What, for people.
    text: String,
}

impl Live {
    /// For these levels and the private servers of their mode. Who knows `token` may do what changes
    /// something.
    pub fn new(levels: Vec<Watched>, servers: &Servers, token: String, runtime: Runtime) -> Self {
        let shown = |watched: Watched| {
            let traffic = store_of(&watched.service)
                .map(|(store, values)| Traffic::new(watched.level, store, values, runtime.clone()));
            Shown { watched, traffic }
        };
        Self {
            levels: levels.into_iter().map(shown).collect(),
            faults: Faults::of(servers.private(), runtime.clone()),
            frames: Mutex::new(Frames::of(runtime.random())),
            news: broadcast::Sender::new(WAITING),
            token,
            began: runtime.now(),
            runtime,
        }
    }

    /// What whoever changes something must know.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// A level of the page.
    pub(crate) fn service_of(&self, level: u8) -> Option<&Service> {
        Some(&self.shown(level)?.watched.service)
    }

    fn shown(&self, level: u8) -> Option<&Shown> {
        self.levels.iter().find(|shown| shown.watched.level.number == level)
    }

    fn frames(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Everything that there is from now on: first what is missing after the frame of this name, or all of
    /// it, then each frame as it is made. Begins to look if nobody did.
    pub(crate) fn watch(
        self: &Arc<Self>,
        after: Option<&str>,
    ) -> (Vec<Arc<Frame>>, broadcast::Receiver<Arc<Frame>>) {
        let mut frames = self.frames();
        let receiver = self.news.subscribe();
        let missed = after.and_then(|after| frames.after(after));
        let first = missed.unwrap_or_else(|| frames.whole().into_iter().collect());
        if !frames.looking {
            frames.looking = true;
            let looking = Looking(Arc::clone(self));
            self.runtime.spawn("live page", async move { looking.run().await }).detach();
        }
        (first, receiver)
    }

    /// Begins, changes or ends the traffic to a level.
    ///
    /// # Errors
    /// What is wrong with the order.
    pub(crate) async fn order(&self, level: u8, order: Option<Order>) -> Result<(), Refused> {
        let shown = self.shown(level).ok_or(Refused::NoSuchLevel)?;
        let traffic = shown.traffic.as_ref().ok_or(Refused::NoRecords)?;
        let text = match &order {
            Some(order) => format!("traffic: {}, {} requests/s", order.profile, order.rate),
            None => "traffic ends".to_owned(),
        };
        match order {
            Some(order) => {
                let tree = shown.watched.service.whole.inspect().await;
                traffic.begin(order, &tree, self.news.clone());
            }
            None => traffic.end(),
        }
        self.mark(Some(level), text);
        Ok(())
    }

    /// Stops a private server for so many seconds.
    ///
    /// # Errors
    /// There is none of this number.
    pub(crate) fn break_server(self: &Arc<Self>, server: usize, time: Duration) -> Option<()> {
        let name = self.faults.begin(server, time)?;
        let (live, seconds) = (Arc::clone(self), time.as_secs());
        self.mark(None, format!("{name} is stopped for {seconds} s"));
        let heals = async move {
            live.runtime.sleep(time).await;
            // Unless somebody has stopped it for longer since.
            if !live.faults.active().iter().any(|(other, left)| *other == server && *left > 0) {
                live.mark(None, format!("{name} goes on"));
            }
        };
        self.runtime.spawn("live mark", heals).detach();
        Some(())
    }

    /// The first answer of each level that was not what the level claims, with its history.
    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.levels.iter().filter_map(|shown| shown.traffic.as_ref()?.violation()).collect()
    }

    /// Ends all traffic and heals what is broken.
    pub async fn stop(&self) {
        self.faults.heal();
        for traffic in self.levels.iter().filter_map(|shown| shown.traffic.as_ref()) {
            traffic.stop().await;
        }
    }

    fn now(&self) -> u64 {
        let since = self.runtime.now().saturating_duration_since(self.began);
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn mark(&self, level: Option<u8>, text: String) {
        self.frames().mark(Mark { at: self.now(), level, text });
    }

    /// One look at all levels, sent to everybody who looks.
    async fn look(&self) {
        let looks = join_all(self.levels.iter().map(Shown::look)).await;
        let active = self.levels.iter().filter_map(|shown| shown.traffic.as_ref());
        let dots = traffic::sample(active.filter_map(|it| Some((it.level(), it.requests()?))));
        let mut frames = self.frames();
        for (shown, look) in self.levels.iter().zip(&looks) {
            let number = shown.watched.level.number;
            if let Some(text) = frames.changed_status(number, look) {
                frames.mark(Mark { at: self.now(), level: Some(number), text });
            }
        }
        let news = News { at: self.now(), dots, faults: self.faults.active() };
        let frame = frames.next(news, looks, || self.described());
        // Sent before the lock is given back, so that whoever joins misses none and has none twice.
        let _nobody_looks = self.news.send(frame);
    }

    /// What does not change while the process runs.
    fn described(&self) -> serde_json::Value {
        let levels = self.levels.iter().map(|shown| {
            let Watched { level, url, keyed, .. } = &shown.watched;
            json!({
                "level": level.number,
                "name": level.name,
                "title": level.title,
                "guarantee": level.guarantee,
                "costs": level.costs,
                "when": level.when,
                "url": url,
                "keyed": keyed,
                "documents": shown.traffic.as_ref().is_some_and(Traffic::is_of_documents),
            })
        });
        json!({ "levels": levels.collect::<Vec<_>>(), "servers": self.faults.names() })
    }
}

impl Shown {
    async fn look(&self) -> Look {
        let tree = self.watched.service.whole.inspect().await;
        let mut look = Look::default();
        look.add(&tree);
        if let Some(traffic) = &self.traffic {
            look.add(&traffic.inspect(&tree));
        }
        look
    }
}

/// What a look shows of itself at the page's own `/health`: no level is asked for it.
impl Whole for Arc<Live> {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        let (frames, watchers) = (self.frames().number(), self.news.receiver_count() as u64);
        Box::pin(async move {
            let tree = Inspection::new("live").status(Status::Healthy, "");
            tree.counter("frames", frames).gauge("watchers", watchers, Unit::Count)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            self.stop().await;
            Ok(())
        })
    }
}

/// The loop that looks, however it ends.
struct Looking(Arc<Live>);

impl Looking {
    async fn run(&self) {
        let live = &self.0;
        let mut next = live.runtime.now();
        loop {
            {
                let mut frames = live.frames();
                // Under the lock under which others join.
                if live.news.receiver_count() == 0 {
                    frames.looking = false;
                    break;
                }
            }
            live.look().await;
            next = (next + EVERY).max(live.runtime.now());
            live.runtime.sleep_until(next).await;
        }
    }
}

impl Drop for Looking {
    fn drop(&mut self) {
        // After a panic, too: the next one who looks begins anew.
        if std::thread::panicking() {
            self.0.frames().looking = false;
        }
    }
}

/// Where the records of a level are, and what they are.
fn store_of(service: &Service) -> Option<(Arc<dyn Store>, Values)> {
    service.faces.iter().find_map(|face| match face {
        Face::Records(records) => Some((Arc::clone(&records.store), records.values)),
        Face::Polyglot(all) => Some((Arc::clone(&all.by_key.store), all.by_key.values)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
