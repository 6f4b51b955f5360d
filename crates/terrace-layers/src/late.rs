//! Something that may not be there yet when the program starts.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use terrace_core::{
    Backoff, BoxFuture, Documents, Error, Inspection, Key, Page, Read, ReadOptions, Receipt,
    Result, Runtime, Scan, Selection, Status, Store, Task, Write, WriteOptions,
};

use crate::SummaryStore;

/// Opens something now, or in the background for as long as its engine cannot be reached, so that a
/// program with several engines starts while one of them is down.
///
/// Every call before it is open answers the error of the last try. What will never open, as with a
/// wrong setting, fails the start.
pub struct Late<T> {
    name: &'static str,
    state: Arc<LateState<T>>,
    opening: Mutex<Option<Task>>,
}

struct LateState<T> {
    opened: OnceLock<T>,
    /// Why the last try failed.
    trouble: Mutex<Option<Error>>,
}

impl<T: Send + Sync + 'static> Late<T> {
    /// Tries `open` until it succeeds; returns after the first try.
    ///
    /// # Errors
    /// Of the first try, unless it may succeed later.
    pub async fn open<F>(name: &'static str, open: F, runtime: &Runtime) -> Result<Self>
    where
        F: Fn() -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    {
        let state = Arc::new(LateState { opened: OnceLock::new(), trouble: Mutex::default() });
        let opening = match open().await {
            Ok(opened) => {
                let _first = state.opened.set(opened);
                None
            }
            Err(error) if error.is_retryable() => {
                tracing::warn!(part = name, %error, "cannot be opened yet; it is tried again");
                state.note(error);
                Some(Self::go_on(name, open, Arc::clone(&state), runtime))
            }
            Err(error) => return Err(error),
        };
        Ok(Self { name, state, opening: Mutex::new(opening) })
    }

    fn go_on<F>(name: &'static str, open: F, state: Arc<LateState<T>>, runtime: &Runtime) -> Task
    where
        F: Fn() -> BoxFuture<'static, Result<T>> + Send + Sync + 'static,
    {
        let (open, on) = (Arc::new(open), runtime.clone());
        runtime.keep(name, move || {
            let (open, state, runtime) = (Arc::clone(&open), Arc::clone(&state), on.clone());
            async move {
                let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(3));
                loop {
                    backoff.wait(&runtime).await;
                    match open().await {
                        Ok(opened) => {
                            let _first = state.opened.set(opened);
                            tracing::info!(part = name, "opened");
                            return Ok(());
                        }
                        Err(error) => state.note(error),
                    }
                }
            }
        })
    }

    /// What was opened.
    ///
    /// # Errors
    /// Why it is not open yet.
    pub fn get(&self) -> Result<&T> {
        self.state.opened.get().ok_or_else(|| {
            let trouble = self.state.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            trouble.clone().unwrap_or_else(|| {
                Error::new(
                    terrace_core::ErrorKind::Unavailable,
                    "a part is not open yet; try again",
                )
            })
        })
    }

    /// Of what was opened, or that nothing is.
    pub async fn inspect_with<'a, F>(&'a self, inspect: F) -> Inspection
    where
        F: FnOnce(&'a T) -> BoxFuture<'a, Inspection>,
    {
        match self.get() {
            Ok(opened) => inspect(opened).await,
            Err(error) => Inspection::new(self.name).status(Status::Down, error.message()),
        }
    }

    /// Ends the tries; what was opened, for its end.
    pub async fn end(&self) -> Option<&T> {
        let opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(opening) = opening {
            opening.stop().await;
        }
        self.state.opened.get()
    }
}

impl<T> LateState<T> {
    fn note(&self, error: Error) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }
}

impl<T> fmt::Debug for Late<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Late({})", self.name)
    }
}

/// Documents, and the summaries that are kept beside them.
#[derive(Clone, Debug)]
pub struct DocumentSide {
    /// The documents, with their layers.
    pub documents: Arc<dyn Documents>,
    /// What a ledger's accounts are brought to.
    pub summaries: SummaryStore,
}

impl fmt::Display for Late<DocumentSide> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.state.opened.get() {
            Some(side) => side.documents.fmt(f),
            None => f.write_str(self.name),
        }
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for Late<DocumentSide> {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move { self.get()?.documents.read(keys, how).await })
    }

    fn write<'a>(
        &'a self,
        batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        Box::pin(async move { self.get()?.documents.write(batch, how).await })
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move { self.get()?.documents.scan(scan, how).await })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(self.inspect_with(|side| side.documents.inspect()))
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async move {
            match self.end().await {
                Some(side) => side.documents.close().await,
                None => Ok(()),
            }
        })
    }
}

#[deny(clippy::missing_trait_methods)]
impl Documents for Late<DocumentSide> {
    fn select<'a>(
        &'a self,
        what: &'a Selection,
        scan: &'a Scan,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move { self.get()?.documents.select(what, scan, how).await })
    }

    fn count(&self) -> BoxFuture<'_, Result<u64>> {
        Box::pin(async move { self.get()?.documents.count().await })
    }
}
