//! A restore that is tried out beside the level that runs.
//!
//! While a backup is made, records are written: one on each database, over and over, with the next number and in
//! the order of the databases. So each of them was written after the copy of the files, and wherever the marker
//! is, the numbers that are restored must not grow along the databases, and differ by one at most. Then the copied
//! bytes are restored and started, and the records compared with what they were at the marker.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::{Error, ErrorKind, Key, Result, Runtime, Store, StoreExt as _, Value};
use terrace_lab::{PostgresOptions as LabOptions, PostgresServer};
use terrace_stores::{Contents, PostgresBackup, PostgresOptions, SqliteBackup};

use super::files::{self, blocking};
use super::{Backup, BackupKey, Making, Tell, restore, url};
use crate::levels::{DatabasePlace, Engines, Original};

/// Between two rounds of writes.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a restored server may take to come to the marker.
const RECOVER_WITHIN: Duration = Duration::from_secs(3_600);

/// What a drill has found; all that is checked was right.
#[derive(Clone, Debug)]
pub struct DrillReport {
    /// The backup.
    pub backup: String,
    /// How many rows were compared.
    pub rows: u64,
    /// How many numbers were written in order over the databases while the backup was made; none when a backup
    /// was given.
    pub rounds: Option<u64>,
    /// How old the marker was when the copy began to be restored: what was written since would be lost.
    pub recovery_point: Duration,
    /// From the begin of the restore until all databases answered.
    pub recovery_time: Duration,
}

/// Makes a backup of the level that runs, sealed with a key where there is one, or takes one that there is, and
/// restores it beside the level. The backup that it made is removed when all is right.
///
/// # Errors
/// What is not right with it. Nothing but the backup is left then, and the running level is as it was.
pub async fn drill(
    engines: &Engines,
    (level, directory): (u8, &Path),
    given: Option<Backup>,
    key: Option<BackupKey>,
    (runtime, tell): (&Runtime, Tell),
) -> Result<DrillReport> {
    let originals = engines.originals().await?;
    let is_given = given.is_some();
    let (backup, rounds) = match given {
        Some(backup) => (backup, None),
        None => {
            let (backup, rounds) =
                rehearse(engines, &originals, (level, directory), key, (runtime, tell)).await?;
            (backup, Some(rounds))
        }
    };
    let work = directory.join(format!(".drill-{}", backup.catalogue.name));
    if work.exists() {
        let message =
            "another drill of this backup is at work, or was killed; then remove what it has left";
        return Err(Error::invalid(message).with("at", work.display().to_string()));
    }
    files::make_new(&work)?;
    let tried = try_out(&backup, &originals, rounds.as_ref(), (&work, runtime)).await;
    let removed = fs::remove_dir_all(&work).map_err(files::failed("remove", &work));
    for original in originals {
        original.close().await?;
    }
    let report = tried?;
    removed?;
    if !is_given {
        fs::remove_dir_all(&backup.place).map_err(files::failed("remove", &backup.place))?;
    }
    Ok(report)
}

/// What was written while a backup was made.
struct Rounds {
    /// The key of each database.
    keys: Vec<Key>,
    /// The number that every database had acknowledged when the marker was begun.
    before: u64,
    /// The last number that was written.
    last: u64,
}

/// Makes a backup while records are written in order.
async fn rehearse(
    engines: &Engines,
    originals: &[Original],
    to: (u8, &Path),
    key: Option<BackupKey>,
    (runtime, tell): (&Runtime, Tell),
) -> Result<(Backup, Rounds)> {
    let making = Making::begin(originals, to, runtime).await?;
    let mut targets = Vec::new();
    for original in originals {
        let key = original.key(engines, &format!("terrace-drill-{}", making.name()))?;
        let key = key.ok_or_else(|| {
            let message = "no key is found that the drill may write on a shard; drill a backup instead \
                           (--backup)";
            Error::invalid(message).with("shard", original.number.to_string())
        })?;
        targets.push((original.records(engines).await?, key));
    }
    making.copy_servers().await?;
    let writer = Arc::new(Writer { targets, ..Writer::default() });
    let (other, clock) = (Arc::clone(&writer), runtime.clone());
    let task = runtime.spawn("drill", async move { other.write(&clock).await });
    let made = async {
        writer.until_written(runtime).await?;
        let before = writer.written.load(Ordering::Acquire);
        Ok((making.finish(key, tell).await?, before))
    };
    let made = made.await;
    writer.over.store(true, Ordering::Release);
    task.await;
    writer.clean_up().await?;
    writer.told()?;
    let (backup, before) = made?;
    let last = writer.begun.load(Ordering::Acquire);
    let keys = writer.targets.iter().map(|(_, key)| key.clone()).collect();
    Ok((backup, Rounds { keys, before, last }))
}

/// Writes the next number to each database in order, again and again.
#[derive(Default)]
struct Writer {
    targets: Vec<(Arc<dyn Store>, Key)>,
    begun: AtomicU64,
    written: AtomicU64,
    over: AtomicBool,
    failed: std::sync::Mutex<Option<Error>>,
}

impl Writer {
    async fn write(&self, runtime: &Runtime) {
        while !self.over.load(Ordering::Acquire) {
            let number = self.begun.fetch_add(1, Ordering::AcqRel) + 1;
            for (store, key) in &self.targets {
                let put = async {
                    store.put(key.clone(), Value::new(number.to_string())?).await.map(drop)
                };
                if let Err(error) = put.await {
                    *self.failed() = Some(error);
                    return;
                }
            }
            self.written.store(number, Ordering::Release);
            runtime.sleep(PAUSE).await;
        }
    }

    fn failed(&self) -> std::sync::MutexGuard<'_, Option<Error>> {
        self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn told(&self) -> Result<()> {
        self.failed().clone().map_or(Ok(()), Err)
    }

    /// Until each database has a number.
    async fn until_written(&self, runtime: &Runtime) -> Result<()> {
        while self.written.load(Ordering::Acquire) == 0 {
            self.told()?;
            runtime.sleep(PAUSE).await;
        }
        Ok(())
    }

    async fn clean_up(&self) -> Result<()> {
        for (store, key) in &self.targets {
            store.delete(key.clone()).await?;
        }
        Ok(())
    }
}

/// Restores, starts, compares.
async fn try_out(
    backup: &Backup,
    originals: &[Original],
    rounds: Option<&Rounds>,
    (work, runtime): (&Path, &Runtime),
) -> Result<DrillReport> {
    let age = runtime.wall().duration_since(backup.catalogue.marker_at);
    let begun = runtime.now();
    let servers = match backup.catalogue.servers.is_empty() {
        true => {
            let (backup, to) = (backup.clone(), work.join("restored"));
            blocking(move || restore(&backup, &to)).await?;
            Vec::new()
        }
        false => start(backup, work).await?,
    };
    let mut answered = begun;
    let mut numbers = Vec::new();
    let mut rows = 0;
    let mut compare = async || {
        for (index, copy) in backup.catalogue.databases.iter().enumerate() {
            let key = rounds.map_or("", |it| it.keys[index].as_str());
            let found = match servers.is_empty() {
                true => {
                    let file = work.join("restored/embedded").join(&copy.at);
                    let key = key.to_owned();
                    blocking(move || SqliteBackup::contents_of(&file, &key)).await?
                }
                false => {
                    let options = restored(backup, originals, index, &servers)?;
                    PostgresBackup::contents_of(options, key, runtime).await?
                }
            };
            answered = runtime.now();
            let Contents { rows: count, sha256, asked } = found;
            if (count, &sha256) != (copy.rows, &copy.sha256) {
                let message = "the restored records are not those of the marker";
                let error = Error::new(ErrorKind::Corrupt, message);
                return Err(error.with("database", copy.number.to_string()));
            }
            rows += count;
            numbers.push(asked);
        }
        Ok(())
    };
    let compared = compare().await;
    for server in &servers {
        // What it has is thrown away with it.
        server.kill();
    }
    compared?;
    if let Some(rounds) = rounds {
        in_order(&numbers, rounds)?;
    }
    Ok(DrillReport {
        backup: backup.catalogue.name.clone(),
        rows,
        rounds: rounds.map(|it| it.last),
        recovery_point: Duration::try_from(age).unwrap_or_default(),
        recovery_time: answered.duration_since(begun),
    })
}

/// The numbers as they were restored, in the order of the databases.
fn in_order(restored: &[Option<String>], rounds: &Rounds) -> Result<()> {
    let numbers = restored.iter().map(|it| it.as_ref().and_then(|it| it.parse::<u64>().ok()));
    let wrong = |message: &'static str| {
        Err(Error::new(ErrorKind::Corrupt, message).with("restored", format!("{restored:?}")))
    };
    let Some(numbers) = numbers.collect::<Option<Vec<_>>>() else {
        return wrong("a record that was written after the copy of the files is missing");
    };
    if numbers.iter().any(|number| *number < rounds.before || *number > rounds.last) {
        return wrong("a record is older than a write that was acknowledged before the marker");
    }
    let (first, last) = (numbers.first().copied(), numbers.last().copied());
    if !numbers.is_sorted_by(|one, next| one >= next) || first > last.map(|last| last + 1) {
        return wrong("of two writes in order on two databases the later one alone was restored");
    }
    Ok(())
}

/// Starts all servers of a backup, each in a directory of its own.
async fn start(backup: &Backup, work: &Path) -> Result<Vec<PostgresServer>> {
    let starts = (0..backup.catalogue.servers.len()).map(|number| start_one(backup, number, work));
    // All ends are waited for: what is started by then is dropped with an error of another.
    join_all(starts).await.into_iter().collect()
}

async fn start_one(backup: &Backup, number: usize, work: &Path) -> Result<PostgresServer> {
    let own = |(name, value): (&str, String)| (name.to_owned(), value);
    let mut settings = restore::recovery(backup).map(own).to_vec();
    // Until it has come to the marker nobody may look; so the original's other settings do not matter.
    settings.push(("hot_standby".to_owned(), "off".to_owned()));
    let options = LabOptions {
        settings,
        start_within: RECOVER_WITHIN,
        temporary: true,
        ..LabOptions::new(work.join(format!("server-{number}")))
    };
    let (backup, (fault, found)) = (backup.clone(), mpsc::channel());
    let started = PostgresServer::restore(options, move |home| {
        let filled = restore::server(&backup, number, home);
        filled.map_err(|error| {
            let _told_by_the_channel = fault.send(error);
            std::io::Error::other("the backup is not whole")
        })
    });
    let started = started.await;
    started.map_err(|error| {
        found.try_recv().unwrap_or_else(|_| {
            let message = "a restored server does not come to the marker; the backup is of no use";
            Error::new(ErrorKind::Corrupt, message)
                .with("server", number.to_string())
                .caused_by(error)
        })
    })
}

/// How a restored database is reached: with the login of the original.
fn restored(
    backup: &Backup,
    originals: &[Original],
    index: usize,
    servers: &[PostgresServer],
) -> Result<PostgresOptions> {
    let copy = &backup.catalogue.databases[index];
    let server = backup.catalogue.servers.iter().position(|it| it.directory == copy.at);
    let server = server.and_then(|number| servers.get(number));
    let original = originals.iter().find(|it| it.number == copy.number).map(|it| &it.place);
    let (Some(server), Some(DatabasePlace::Server(options))) = (server, original) else {
        return Err(Error::invalid("the level that runs has other databases than the backup"));
    };
    let url = url::on_port(&options.url, server.port());
    Ok(PostgresOptions { url, schema: copy.schema.clone(), ..(**options).clone() })
}
