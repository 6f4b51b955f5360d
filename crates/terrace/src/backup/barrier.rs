//! The moment in which all databases hold their writers.

use std::time::Duration;

use futures_util::future::{join_all, try_join_all};
use terrace_core::{Deadline, Error, ErrorKind, Result, Runtime};

use super::{Catalogue, DatabaseCopy, Source, Tell};

/// How long all databases together may take to hold their writers. Less than a write waits for a lock.
const WITHIN: Duration = Duration::from_millis(400);
/// How long the marker may take; a server ends a session that holds writers for longer.
const MARK_WITHIN: Duration = Duration::from_secs(1);
/// How often it is tried, and how long writers have to themselves in between.
const TRIES: u32 = 10;
const BETWEEN: Duration = Duration::from_millis(300);
/// How long maintenance of the records is waited for, while writers go on, and how often it is looked for.
const MAINTAINED_FOR: Duration = Duration::from_secs(3_600);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// The moment, when it is over.
pub(super) struct Moment {
    /// The name of the marker.
    pub(super) marker: String,
    /// For each server, where its log has it.
    pub(super) markers: Vec<(usize, String)>,
    /// For how long writers may have waited.
    pub(super) held: Duration,
}

/// Holds the writers of all databases at once, marks each server, pins each database, and lets writers go on.
///
/// # Errors
/// `Unavailable` when somebody else holds the records of a database all the time. Nothing stays held.
pub(super) async fn mark(
    databases: &[Source],
    catalogue: &Catalogue,
    (runtime, tell): (&Runtime, Tell),
) -> Result<Moment> {
    let patience = Deadline::at(runtime.now() + MAINTAINED_FOR);
    let mut held_by_another = 0;
    for again in 0..TRIES {
        if again > 0 {
            runtime.sleep(runtime.jitter(BETWEEN, 0.3)).await;
        }
        until_unmaintained(databases, catalogue, patience, (runtime, tell)).await?;
        let marker = catalogue.new_marker(runtime);
        let begun = runtime.now();
        let held = join_all(databases.iter().map(|it| it.hold(runtime))).await;
        let marked = match held.iter().position(|held| !matches!(held, Ok(true))) {
            Some(other) => {
                held_by_another = other;
                None
            }
            None => {
                let end = Deadline::at(runtime.now() + MARK_WITHIN);
                runtime.within(end, mark_all(databases, &marker)).await
            }
        };
        // All of them, whatever became of the others.
        let released = join_all(databases.iter().map(Source::release)).await;
        held.into_iter().collect::<Result<Vec<_>>>()?;
        let Some(markers) = marked.transpose()? else { continue };
        released.into_iter().collect::<Result<Vec<_>>>()?;
        let held = runtime.now().duration_since(begun);
        return Ok(Moment { marker, markers, held });
    }
    let by = "another session has the records of a database; end its transaction (pg_stat_activity names it)";
    Err(held_by(by, &catalogue.databases[held_by_another]))
}

/// What is told when writers cannot be held.
fn held_by(whom: &str, database: &DatabaseCopy) -> Error {
    let message =
        format!("writers cannot be held for the moment of a backup, because {whom} and try again");
    let error = Error::new(ErrorKind::Unavailable, message);
    error.with("database", database.number.to_string()).with("at", database.at.clone())
}

/// Waits until no table of records is maintained: that may take longer than all tries, and ends by itself.
async fn until_unmaintained(
    databases: &[Source],
    catalogue: &Catalogue,
    patience: Deadline,
    (runtime, tell): (&Runtime, Tell),
) -> Result<()> {
    let mut told = None;
    loop {
        let found = try_join_all(databases.iter().map(Source::maintenance)).await?;
        let found = found.into_iter().zip(&catalogue.databases);
        let Some((by, database)) = found.filter_map(|(by, it)| Some((by?, it))).next() else {
            return Ok(());
        };
        if patience.passed(runtime.now()) {
            return Err(held_by(&format!("{by} goes on; let it end"), database));
        }
        if told.as_ref() != Some(&by) {
            let number = database.number;
            tell(&format!(
                "Database {number}: waiting for the end of {by}. The copy is kept, and writers go on."
            ));
            told = Some(by);
        }
        runtime.sleep(LOOK_EVERY).await;
    }
}

async fn mark_all(databases: &[Source], marker: &str) -> Result<Vec<(usize, String)>> {
    try_join_all(databases.iter().map(Source::pin)).await?;
    let mut firsts = Vec::<(usize, _)>::new();
    for database in databases {
        if let Source::Postgres(source, server) = database
            && firsts.iter().all(|(known, _)| known != server)
        {
            firsts.push((*server, source));
        }
    }
    let marks = firsts.into_iter();
    try_join_all(marks.map(async |(server, source)| Ok((server, source.mark(marker).await?)))).await
}

impl Source {
    async fn maintenance(&self) -> Result<Option<String>> {
        match self {
            Source::Postgres(source, _) => source.maintenance().await,
            Source::Sqlite(_) => Ok(None),
        }
    }

    async fn hold(&self, runtime: &Runtime) -> Result<bool> {
        match self {
            Source::Postgres(source, _) => source.hold(WITHIN).await,
            Source::Sqlite(source) => source.hold(WITHIN, runtime).await,
        }
    }

    async fn pin(&self) -> Result<()> {
        match self {
            Source::Postgres(source, _) => source.pin().await,
            Source::Sqlite(source) => source.pin(),
        }
    }

    async fn release(&self) -> Result<()> {
        match self {
            Source::Postgres(source, _) => source.release().await,
            Source::Sqlite(source) => source.release(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use terrace_core::{Store as _, StoreExt as _};
    use terrace_stores::{SqliteBackup, SqliteOptions, SqliteStore};

    use super::super::DatabaseCopy;
    use super::*;

    /// Two files with a record each, as they are backed up.
    async fn two(directory: &Path) -> (Vec<Source>, Catalogue) {
        let runtime = Runtime::system();
        let mut catalogue = Catalogue::begin("two".to_owned(), 4, runtime.wall());
        let mut sources = Vec::new();
        for number in 0..2 {
            let path = directory.join(number.to_string());
            let store = SqliteStore::open(SqliteOptions::new(&path), runtime.clone());
            let store = store.expect("a file");
            let (key, value) = (terrace_core::Key::new("a"), terrace_core::Value::new("before"));
            store.put(key.expect("a key"), value.expect("a value")).await.expect("a put");
            store.close().await.expect("it closes");
            sources.push(Source::Sqlite(Arc::new(beside(directory, number))));
            catalogue.databases.push(DatabaseCopy { number, ..DatabaseCopy::default() });
        }
        (sources, catalogue)
    }

    /// Somebody else with the file.
    fn beside(directory: &Path, number: u16) -> SqliteBackup {
        SqliteBackup::open(&directory.join(number.to_string())).expect("a file")
    }

    async fn is_free(file: &SqliteBackup) -> bool {
        let held = file.hold(Duration::ZERO, &Runtime::system()).await.expect("an answer");
        file.release().expect("it is released");
        held
    }

    /// A write that is acknowledged on the first one while the second is waited for would be in neither the
    /// first's copy nor, with what follows from it, kept out of the second's.
    #[tokio::test(start_paused = true)]
    async fn no_database_is_let_go_before_all_are_marked() {
        let (directory, runtime) = (tempfile::tempdir().expect("a directory"), Runtime::system());
        let (sources, catalogue) = two(directory.path()).await;
        let (first, second) = (beside(directory.path(), 0), beside(directory.path(), 1));
        assert!(second.hold(Duration::ZERO, &runtime).await.expect("an answer"));
        let mut marking = Box::pin(mark(&sources, &catalogue, (&runtime, |_| ())));
        let early = Deadline::at(runtime.now() + WITHIN / 2);
        assert!(runtime.within(early, &mut marking).await.is_none(), "one is not held yet");
        assert!(!is_free(&first).await, "the other one is, and stays so");
        second.release().expect("it is free");
        let moment = marking.await.expect("a moment");
        assert!(moment.held <= WITHIN, "writers waited {:?}", moment.held);
        assert!(is_free(&first).await && is_free(&second).await);
    }

    /// Of two markers of one name a server recovers to the first.
    #[tokio::test(start_paused = true)]
    async fn each_try_has_a_marker_of_its_own_and_the_last_snapshot() {
        let (directory, runtime) = (tempfile::tempdir().expect("a directory"), Runtime::system());
        let (sources, mut catalogue) = two(directory.path()).await;
        let first = mark(&sources, &catalogue, (&runtime, |_| ())).await.expect("a moment");
        let path = directory.path().join("0");
        let store = SqliteStore::open(SqliteOptions::new(&path), runtime.clone()).expect("a file");
        let (key, value) = (terrace_core::Key::new("b"), terrace_core::Value::new("between"));
        store.put(key.expect("a key"), value.expect("a value")).await.expect("a put");
        let second = mark(&sources, &catalogue, (&runtime, |_| ())).await.expect("a moment");
        assert_ne!(first.marker, second.marker);
        catalogue.databases[0].at = "copy".to_owned();
        let read = sources[0].read(directory.path(), &catalogue.databases[0]).await;
        assert_eq!(read.expect("contents").rows, 2, "what was pinned last is read");
    }

    #[tokio::test(start_paused = true)]
    async fn a_database_that_stays_held_ends_it_and_nothing_stays_held() {
        let (directory, runtime) = (tempfile::tempdir().expect("a directory"), Runtime::system());
        let (sources, catalogue) = two(directory.path()).await;
        let (first, second) = (beside(directory.path(), 0), beside(directory.path(), 1));
        assert!(second.hold(Duration::ZERO, &runtime).await.expect("an answer"));
        let begun = runtime.now();
        let error =
            mark(&sources, &catalogue, (&runtime, |_| ())).await.err().expect("it is given up");
        assert!(error.message().contains("another session has the records"), "{error}");
        assert!(error.particulars().contains("database 1"), "{error:?}");
        assert!(runtime.now() - begun < TRIES * (WITHIN + 2 * BETWEEN));
        assert!(is_free(&first).await, "nothing stays held");
    }
}
