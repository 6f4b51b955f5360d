//! Fills, invalidations and clears: one script call each, several at once for many keys.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{Cmd, Script};
use terrace_core::{Key, Lease, Offer, Result, Version};

use super::Shared;
use super::entry::{FORMAT, encode, epoch_digits, version_digits};
use super::link::Live;
use super::message::encode_keys;
use super::scripts::{call, call_of};

/// The most keys of one call: a script holds up the whole server while it runs.
const CHUNK: usize = 128;

impl Shared {
    pub(super) async fn offer(&self, offers: &[Offer]) -> Result<()> {
        if offers.is_empty() {
            return Ok(());
        }
        let live = self.link.live()?;
        let commands = offers.chunks(CHUNK).filter_map(|chunk| self.fill_call(chunk)).collect();
        self.run(&live, self.fill_script(), commands).await?;
        self.counters.fills(offers.len());
        Ok(())
    }

    pub(super) async fn bury(&self, written: &[(Key, Version)]) -> Result<()> {
        if written.is_empty() {
            return Ok(());
        }
        let live = self.link.live()?;
        let calls = written.chunks(CHUNK).map(|chunk| self.invalidate_call(&live, chunk)).collect();
        self.run(&live, self.invalidate_script(), calls).await?;
        self.counters.invalidations(written.len());
        Ok(())
    }

    pub(super) async fn forget(&self) -> Result<()> {
        let live = self.link.live()?;
        let mut command = call_of(&self.link.scripts.clear, 2);
        command.arg(&self.names.epoch).arg(&self.names.number);
        command.arg(self.fresh_epoch(&live)).arg(self.channel());
        self.run(&live, &self.link.scripts.clear, vec![command]).await
    }

    pub(super) async fn beat(&self) -> Result<()> {
        let live = self.link.live()?;
        let mut command = call_of(&self.link.scripts.heartbeat, 2);
        command.arg(&self.names.epoch).arg(&self.names.number).arg(&self.names.channel);
        self.run(&live, &self.link.scripts.heartbeat, vec![command]).await
    }

    async fn run(
        &self,
        live: &std::sync::Arc<Live>,
        script: &Script,
        commands: Vec<Cmd>,
    ) -> Result<()> {
        let calls = commands.iter().map(|command| {
            let mut connection = live.connection.clone();
            async move { call(&mut connection, script, command).await }
        });
        self.link.ask(live, try_join_all(calls)).await?;
        Ok(())
    }

    /// `None` when no offer of the chunk may be kept.
    fn fill_call(&self, offers: &[Offer]) -> Option<Cmd> {
        let now = self.runtime().wall();
        let entries: Vec<_> = offers
            .iter()
            .filter_map(|offer| {
                let life = self.life(offer)?;
                Some((&offer.key, encode(&offer.entry, offer.lease, now)?, life))
            })
            .collect();
        if entries.is_empty() {
            return None;
        }
        let mut command = call_of(self.fill_script(), entries.len() + 1);
        command.arg(&self.names.epoch);
        for (key, _, _) in &entries {
            self.names.write_entry(&mut command, key);
        }
        for (_, bytes, life) in &entries {
            command.arg(bytes.as_slice()).arg(*life);
        }
        Some(command)
    }

    /// The milliseconds that an entry has left of its time, which began at its load.
    fn life(&self, offer: &Offer) -> Option<u64> {
        let options = &self.options;
        let full = if offer.entry.record.is_some() { options.ttl } else { options.missing_ttl };
        let left = self.runtime().jitter(full, options.ttl_jitter).checked_sub(offer.entry.age)?;
        u64::try_from(left.as_millis()).ok().filter(|left| *left > 0)
    }

    fn invalidate_call(&self, live: &Live, written: &[(Key, Version)]) -> Cmd {
        let mut command = call_of(self.invalidate_script(), written.len() + 2);
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

    #[cfg(not(feature = "mutants"))]
    fn fill_script(&self) -> &Script {
        &self.link.scripts.fill
    }

    #[cfg(not(feature = "mutants"))]
    fn invalidate_script(&self) -> &Script {
        &self.link.scripts.invalidate
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
