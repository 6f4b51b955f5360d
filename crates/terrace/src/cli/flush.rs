//! `terrace flush`: the flusher of level 6 alone, so that writers and appliers scale apart.

use tokio::sync::watch;

use super::{Failure, run, screen};
use crate::levels::{Engines, FlusherApart, flusher};

/// Applies what is accepted until a stop is asked for.
pub(super) async fn until_stopped(
    engines: Engines,
    mut stop: watch::Receiver<bool>,
) -> Result<(), Failure> {
    let started = flusher(&engines).await.map_err(|error| run::fatal(&error))?;
    let FlusherApart { flusher, journal, store } = started;
    screen::line("Applying what level 6 accepts. Ctrl-C stops.");
    // The sender has told before it is gone.
    let _ = stop.wait_for(|stop| *stop).await;
    flusher.stop().await;
    if let Ok(progress) = journal.progress().await {
        screen::line(&format!("{} writes wait in the journal.", progress.writes));
    }
    for closed in [journal.close().await, store.close().await] {
        closed.map_err(|error| run::fatal(&error))?;
    }
    Ok(())
}
