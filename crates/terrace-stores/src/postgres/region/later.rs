//! A region whose server may be down when an instance starts.

use std::sync::Arc;
use std::time::Duration;

use terrace_core::{Backoff, Result, Runtime};

use super::super::prepare::prepare;
use super::super::{PostgresOptions, PostgresStore, connector};

impl PostgresStore {
    /// As [`PostgresStore::connect`] for a region whose server may be down: its tables are made, or looked
    /// at, once it answers, and until then every call is `Unavailable`,
    /// [`Generations::history`](terrace_core::Generations::history) answers nothing, and the log has no
    /// name. A server that is refused, as one of another region, is tried again, and each time the log
    /// of the program says why.
    ///
    /// # Errors
    /// [`InvalidInput`](terrace_core::ErrorKind::InvalidInput) for options that cannot be used.
    pub fn region_later(mut options: PostgresOptions, runtime: Runtime) -> Result<Self> {
        options.change_log |= options.region.is_some();
        let connector = connector(&options, options.dialect(), &runtime)?;
        let store = Self::assemble(options.clone(), connector, runtime.clone())?;
        let (pool, log) = (Arc::clone(&store.worker.pool), store.region_log());
        let clock = runtime.clone();
        let reach = runtime.keep("postgres region", move || {
            let (options, clock, pool) = (options.clone(), clock.clone(), Arc::clone(&pool));
            let log = log.clone();
            async move {
                let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(3));
                while !pool.is_closed() {
                    // Boxed: it is large, and rare.
                    match Box::pin(prepare(&options, pool.connector(), &clock)).await {
                        Ok((_session, name)) => {
                            if let Some((log, name)) = log.zip(name) {
                                log.is_named(name);
                            }
                            return Ok(());
                        }
                        Err(error) => {
                            tracing::warn!(%error, "a region cannot be used yet; it is tried again");
                            backoff.wait(&clock).await;
                        }
                    }
                }
                Ok(())
            }
        });
        store.also_stop(reach);
        Ok(store)
    }
}
