//! Connections over TLS: the handshake, then HTTP as everywhere.

use std::net::IpAddr;
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio::sync::watch;

use super::app::App;
use super::connection::Watched;
use super::server::{Life, connection};
use super::tls::Tls;

/// Serves one connection.
///
/// Its limits are kept beneath TLS, on what the network sends: from the first byte of the handshake to the
/// end of the first head is one wait for a head.
pub(super) async fn connection_over_tls(
    stream: Watched<TcpStream>,
    tls: &Tls,
    peer: Option<IpAddr>,
    app: Arc<App>,
    mut life: watch::Receiver<Life>,
) {
    let stage = stream.stage();
    let stream = tokio::select! {
        biased;
        stream = tls.acceptor().accept(stream) => stream,
        // Who has not asked for anything by now is not waited for.
        _ = life.wait_for(|life| *life >= Life::Draining) => return,
    };
    match stream {
        Ok(stream) => connection(stream, stage, peer, app, life).await,
        // Whoever scans the port causes it, too.
        Err(error) => tracing::debug!(%error, ?peer, "no connection over TLS"),
    }
}
