//! The live page beside the levels: its socket, its token, its server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use terrace_core::{Runtime, Task};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::Failure;
use crate::config::{Config, LivePlace};
use crate::http::{Face, Limits, Service, bind as listen, doorman, serve};
use crate::levels::Servers;
use crate::live::{Live, Watched};

/// The page, while it is served.
pub(super) struct LivePage {
    url: String,
    live: Arc<Live>,
    server: Task,
}

/// Binds the socket of the page, if there is to be one. Levels are served without it where its usual port is
/// in use: that may be another `terrace up`.
pub(super) fn bind(config: &Config, up: bool) -> Result<Option<TcpListener>, Failure> {
    let (address, asked) = match config.live.place(up, config.server.port_base)? {
        LivePlace::Nowhere => return Ok(None),
        LivePlace::Usual(address) => (address, false),
        LivePlace::Asked(address) => (address, true),
    };
    match listen(address) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if asked => Err(Failure::failed(format!("live.listen: {}", error.message()))),
        Err(error) => {
            let why = error.message();
            tracing::warn!("there is no live page: {why}; or name one with TERRACE_LIVE_LISTEN");
            Ok(None)
        }
    }
}

impl LivePage {
    /// Serves the page of these levels until a stop is asked for.
    pub(super) fn serve(
        listener: TcpListener,
        levels: Vec<Watched>,
        servers: &Servers,
        runtime: &Runtime,
        mut stop: watch::Receiver<bool>,
    ) -> Result<Self, Failure> {
        let address: SocketAddr = listener
            .local_addr()
            .map_err(|error| Failure::failed(format!("a socket has no address: {error}")))?;
        let token = token()?;
        let url = format!("http://{address}/#{token}");
        let live = Arc::new(Live::new(levels, servers, token, runtime.clone()));
        let service = Service {
            name: "live",
            faces: vec![Face::Live(Arc::clone(&live))],
            whole: Arc::new(Arc::clone(&live)),
            guards: doorman::guards(&live),
            limits: limits(),
            tls: None,
            runtime: runtime.clone(),
        };
        let server = runtime.spawn("live http", async move {
            let stopped = async move {
                let _ = stop.wait_for(|stop| *stop).await;
                Duration::ZERO
            };
            serve(listener, service, stopped).await;
        });
        Ok(Self { url, live, server })
    }

    /// The page's address, with what proves that whoever opens it started the process.
    pub(super) fn url(&self) -> &str {
        &self.url
    }

    /// Ends what the page has begun, and its server.
    pub(super) async fn end(self) {
        self.live.stop().await;
        self.server.await;
    }
}

/// A stream of frames is one answer that is never over: to the limits its connection is idle.
fn limits() -> Limits {
    let hour = Duration::from_secs(3_600);
    Limits { connections: 64, idle_time: hour, body_bytes: 64 * 1024, ..Limits::default() }
}

/// 128 random bits.
fn token() -> Result<String, Failure> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Failure::failed(format!("the system has no random numbers: {error}")))?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}
