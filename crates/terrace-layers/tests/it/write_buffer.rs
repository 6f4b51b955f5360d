//! `WriteBuffer` and `Flusher` over a journal in memory: what is read, what waits, what goes wrong.

mod contract;
mod faults;
mod news;
mod pace;
mod races;
mod reads;
mod simulation;

use std::sync::Arc;
use std::time::Duration;

use terrace_core::testkit::{Hand, Scripted, ScriptedGenerations, key, value};
use terrace_core::{
    Deadline, Durability, Journal, JournalLimits, MemoryJournal, MemoryStore, Origin, Outcome,
    Precondition, ReadOptions, Receipt, Result, Runtime, Store, StoreExt, Version, Write,
    WriteOptions, one,
};
use terrace_layers::{FlusherOptions, WriteBuffer, WriteBufferOptions};

const TAKEOVER: Duration = Duration::from_secs(1);
const HISTORY: &str = "journal-of-test";

fn journal(runtime: &Runtime) -> Arc<MemoryJournal> {
    Arc::new(MemoryJournal::new(JournalLimits::default(), TAKEOVER, runtime.clone()))
}

/// Without a flusher of its own: what is written waits.
fn idle() -> WriteBufferOptions {
    WriteBufferOptions { flusher: None, ..WriteBufferOptions::default() }
}

async fn open(
    inner: Arc<dyn Store>,
    journal: &Arc<MemoryJournal>,
    options: WriteBufferOptions,
) -> WriteBuffer {
    let journal = Arc::clone(journal) as Arc<dyn Journal>;
    WriteBuffer::open(
        inner,
        Arc::new(ScriptedGenerations::default()),
        journal,
        HISTORY,
        options,
        Runtime::system(),
    )
    .await
}

async fn text(store: &dyn Store, name: &str, how: &ReadOptions) -> Result<Option<String>> {
    let read = store.get_read(&key(name), how).await?;
    Ok(read.record.map(|record| record.value.as_str().to_owned()))
}

async fn plain(store: &dyn Store, name: &str) -> Option<String> {
    text(store, name, &ReadOptions::default()).await.unwrap()
}

fn with_token(receipt: &Receipt) -> ReadOptions {
    ReadOptions { token: Some(receipt.token.clone()), ..ReadOptions::default() }
}

fn committed() -> WriteOptions {
    WriteOptions { durability: Some(Durability::Committed), ..WriteOptions::default() }
}

fn is(text: &str) -> Option<String> {
    Some(text.to_owned())
}
