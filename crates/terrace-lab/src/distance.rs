//! Distance on one machine.
//!
//! A round trip over loopback takes some hundredths of a millisecond, and no network is as fast: beside
//! its database, a cache buys nothing. A [`Distance`] holds back what a program and a server send each
//! other, each way half a round trip, in a proxy on a thread of its own, so that a program that is
//! busy does not change the distance. A new connection costs its round trip, too.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

use crate::error::{LabError, LabErrorKind, Result};
use crate::private_server::PrivateServer;
use crate::proxy::{Direction, FaultProxy};

/// What keeps servers away from this process; everything is near again when it is dropped.
#[derive(Debug)]
pub struct Distance {
    runs: Handle,
    proxies: Mutex<Vec<FaultProxy>>,
    _end: oneshot::Sender<()>,
}

impl Distance {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`LabErrorKind::Io`] when the system has no thread or no descriptors left.
    pub fn begin() -> Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build().map_err(failed)?;
        let runs = runtime.handle().clone();
        let (end, ended) = oneshot::channel::<()>();
        let work = move || drop(runtime.block_on(ended));
        std::thread::Builder::new().name("distance".into()).spawn(work).map_err(failed)?;
        Ok(Self { runs, proxies: Mutex::default(), _end: end })
    }

    /// The same URL of a server, so far away; the URL itself without a distance.
    ///
    /// # Errors
    /// [`LabErrorKind::Io`] when no port can be had.
    pub async fn to(
        &self,
        server: &PrivateServer,
        url: &str,
        round_trip: Duration,
    ) -> Result<String> {
        if round_trip.is_zero() {
            return Ok(url.to_owned());
        }
        let proxy = self.runs.spawn(FaultProxy::to_port(server.port())).await;
        let proxy = proxy.map_err(std::io::Error::other).and_then(|it| it).map_err(failed)?;
        proxy.delay(Direction::Both, round_trip / 2);
        let url = proxy.url(url);
        self.proxies.lock().unwrap_or_else(PoisonError::into_inner).push(proxy);
        Ok(url)
    }
}

fn failed(error: std::io::Error) -> LabError {
    let next = "allow more open files and threads (ulimit -n, ulimit -u)";
    LabError::new(LabErrorKind::Io, format!("no distance can be made: {error}"), next)
}
