//! Fills, invalidations and clears: one script call each; single keys share theirs.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use futures_util::future::try_join_all;
use redis::{Cmd, Script, Value};
use terrace_core::{BoxFuture, Key, Lease, Offer, Result, Timestamp, Version};

use super::Shared;
use super::batches::{CHUNK, Question};
use super::clock::millis;
use super::entry::timestamp;
use super::entry::{FORMAT, encode, epoch_digits, version_digits};
use super::failure::Down;
use super::link::Live;
use super::message::encode_keys;
use super::scripts::{call, call_of};

/// An offer as it is sent. Made when it comes, so that a wait does not make it look younger.
#[derive(Debug)]
pub(super) struct Fill {
    key: Key,
    bytes: Vec<u8>,
    /// Milliseconds.
    life: u64,
    offered: Instant,
}

impl Question for Fill {
    type Answer = ();

    fn bytes(&self) -> usize {
        self.key.as_str().len() + self.bytes.len()
    }

    fn ask(shared: &Shared, fills: Vec<Self>) -> BoxFuture<'_, Result<Vec<()>>> {
        Box::pin(async move { shared.store(&fills).await.map(|()| vec![(); fills.len()]) })
    }
}

impl Question for (Key, Version) {
    type Answer = ();

    fn bytes(&self) -> usize {
        self.0.as_str().len()
    }

    fn ask(shared: &Shared, written: Vec<Self>) -> BoxFuture<'_, Result<Vec<()>>> {
        Box::pin(async move { shared.entomb(&written).await.map(|()| vec![(); written.len()]) })
    }
}

impl Shared {
    pub(super) async fn offer(&self, offers: &[Offer]) -> Result<()> {
        let (live, offered) = (self.link.live()?, self.runtime().now());
        let now = timestamp(live.clock.at_least(offered));
        if let [offer] = offers {
            if let Some(fill) = self.fill(offer, now) {
                self.ask(&self.fills, fill).await?;
            }
        } else {
            let fills: Vec<_> = offers.iter().filter_map(|offer| self.fill(offer, now)).collect();
            self.store(&fills).await?;
        }
        self.counters.fills(offers.len());
        Ok(())
    }

    pub(super) async fn bury(&self, written: &[(Key, Version)]) -> Result<()> {
        match written {
            [single] => self.ask(&self.invalidations, single.clone()).await?,
            _ => self.entomb(written).await?,
        }
        self.counters.invalidations(written.len());
        Ok(())
    }

    async fn store(&self, fills: &[Fill]) -> Result<()> {
        if fills.is_empty() {
            return Ok(());
        }
        let live = self.link.live()?;
        let calls = fills.chunks(CHUNK).map(|chunk| self.fill_call(&live, chunk)).collect();
        self.run(&live, &self.link.scripts.fill, calls).await.map(drop)
    }

    async fn entomb(&self, written: &[(Key, Version)]) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        let live = self.link.live()?;
        let calls = written.chunks(CHUNK).map(|chunk| self.invalidate_call(&live, chunk)).collect();
        for answer in self.run(&live, &self.link.scripts.invalidate, calls).await? {
            // Answers of one batch may come in any order; the next beat looks whether it goes back.
            if let Ok((epoch, number)) = redis::from_redis_value::<(Vec<u8>, Vec<u8>)>(answer) {
                live.note(epoch, &number);
            }
        }
        Ok(())
    }

    pub(super) async fn forget(&self) -> Result<()> {
        let live = self.link.live()?;
        let mut command = call_of(&self.link.scripts.clear, 2);
        command.arg(&self.names.epoch).arg(&self.names.number);
        command.arg(self.fresh_epoch(&live)).arg(self.channel());
        self.run(&live, &self.link.scripts.clear, vec![command]).await.map(drop)
    }

    /// Beats for as long as it is polled.
    pub(super) async fn beat_forever(&self) -> Result<()> {
        loop {
            self.runtime().sleep(self.options.heartbeat).await;
            // Without a connection there is nothing to say; the silence says it.
            let _ = self.beat().await;
        }
    }

    /// Gives the connection up unless its server takes writes: one that answers reads alone would
    /// answer what nobody could invalidate.
    pub(super) async fn beat(&self) -> Result<()> {
        let live = self.link.live()?;
        let publishes = self.options.announce || self.listeners.load(Relaxed) > 0;
        let channel = if publishes { &self.names.channel } else { "" };
        let done = self.link.ask(&live, self.link.beat(&live, channel)).await;
        if done.is_err() {
            // Where the reason was better known the connection is gone already.
            self.link.lose(&live, Down::Unwritable);
        }
        self.link.leave_with_others(&live).await;
        done
    }

    async fn run(
        &self,
        live: &std::sync::Arc<Live>,
        script: &Script,
        commands: Vec<Cmd>,
    ) -> Result<Vec<Value>> {
        let calls = commands.iter().map(|command| {
            let mut connection = live.connection.clone();
            async move { call(&mut connection, script, command).await }
        });
        self.link.ask(live, try_join_all(calls)).await
    }

    fn fill_call(&self, live: &Live, fills: &[Fill]) -> Cmd {
        let mut command = call_of(&self.link.scripts.fill, fills.len() + 1);
        command.arg(&self.names.epoch);
        for fill in fills {
            self.names.write_entry(&mut command, &fill.key);
        }
        // A call may lie in a buffer, or before a server that stands still, until the tombstones
        // that it should find are gone. The rest of their time is for the load.
        let offered = fills.iter().map(|fill| live.clock.at(fill.offered)).min();
        command.arg(offered.unwrap_or(0).saturating_add(millis(self.options.tombstone_ttl / 6)));
        for fill in fills {
            command.arg(fill.bytes.as_slice()).arg(fill.life);
        }
        command
    }

    /// `None` for an offer that may not be kept.
    fn fill(&self, offer: &Offer, now: Timestamp) -> Option<Fill> {
        let life = self.life(offer)?;
        let bytes = encode(&offer.entry, offer.lease, now, Duration::from_millis(life))?;
        Some(Fill { key: offer.key.clone(), bytes, life, offered: self.runtime().now() })
    }

    /// The milliseconds that an entry has left of its time, which began at its load.
    fn life(&self, offer: &Offer) -> Option<u64> {
        let options = &self.options;
        let full = if offer.entry.record.is_some() { options.ttl } else { options.missing_ttl };
        let left = self.runtime().jitter(full, options.ttl_jitter).checked_sub(offer.entry.age)?;
        u64::try_from(left.as_millis()).ok().filter(|left| *left > 0)
    }

    fn invalidate_call(&self, live: &Live, written: &[(Key, Version)]) -> Cmd {
        let mut command = call_of(&self.link.scripts.invalidate, written.len() + 2);
        command.arg(&self.names.epoch).arg(&self.names.number);
        for (key, _) in written {
            self.names.write_entry(&mut command, key);
        }
        command.arg(self.fresh_epoch(live)).arg(millis(self.options.tombstone_ttl));
        command.arg(self.channel());
        command.arg(if self.options.announce { encode_keys(written) } else { Vec::new() });
        command.arg(FORMAT);
        for (_, version) in written {
            command.arg(version_digits(*version));
        }
        command
    }

    fn fresh_epoch(&self, live: &Live) -> String {
        epoch_digits(Lease(self.runtime().random())) + &live.run_id
    }

    /// Where to announce; empty for nowhere.
    fn channel(&self) -> &str {
        if self.options.announce { &self.names.channel } else { "" }
    }
}
