//! Requests of this process to its own service, over a connection in memory: they pass its guards and its
//! endpoints as any other does, whatever port and certificate it is served with.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::sync::watch;

use super::app::App;
use super::connection::Watched;
use super::server::{Life, connection};
use crate::outbound::exchange;

/// Bytes on their way in each direction.
const PIPE: usize = 64 * 1024;

/// The answer to one request, of at most this many bytes.
///
/// # Errors
/// In words: the answer is longer, or there is none.
pub(super) async fn ask(
    app: &Arc<App>,
    request: Request<Full<Bytes>>,
    most: usize,
) -> Result<Response<Bytes>, String> {
    let (client, server) = tokio::io::duplex(PIPE);
    let watched = Watched::new(server, app.runtime.clone(), Arc::new(app.limits.clone()));
    // Its end is the end of the connection.
    let (_life, watcher) = watch::channel(Life::Serving);
    let (stage, here) = (watched.stage(), Some(IpAddr::from(Ipv4Addr::LOCALHOST)));
    let served = connection(watched, stage, here, Arc::clone(app), watcher);
    let asked = async {
        let made = http1::handshake(TokioIo::new(client)).await;
        let (mut sender, wire) = made.map_err(|error| error.to_string())?;
        let mut exchange = std::pin::pin!(exchange(&mut sender, request, most));
        tokio::select! {
            answer = &mut exchange => answer,
            // What came before its end is there.
            _ = wire => exchange.await,
        }
    };
    tokio::select! {
        answer = asked => answer,
        // It ends only after its client.
        () = served => Err("the connection ended without an answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use terrace_core::{MemoryStore, Runtime, Store};

    use super::*;
    use crate::http::{Documents, Face, Guards, Limits, Records, Service, documents};

    #[tokio::test]
    async fn a_request_is_answered_as_over_the_network() {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let documents = Documents::of(&documents::L0, Records::of(Arc::clone(&store)));
        let app = Arc::new(App::new(Service {
            name: "0-single-db",
            faces: vec![Face::Documents(Arc::new(documents))],
            whole: Arc::new(store),
            guards: Guards::default(),
            limits: Limits::default(),
            tls: None,
            runtime: Runtime::system(),
        }));
        let request = |method: &str, path: &str, body: &'static str| {
            let request = Request::builder().method(method).uri(path).header("host", "a");
            let request = request.header("content-type", "application/json");
            request.body(Full::new(Bytes::from_static(body.as_bytes()))).expect("a request")
        };
        let write = request("POST", "/write", r#"{"key":"user:1","value":"Ada"}"#);
        assert_eq!(ask(&app, write, 1000).await.expect("an answer").status(), 200);
        let read = ask(&app, request("GET", "/read/user:1", ""), 1000).await.expect("an answer");
        assert_eq!(read.headers()["terrace-origin"], "primary");
        assert!(String::from_utf8_lossy(read.body()).contains("Ada"));
        let long = ask(&app, request("GET", "/read/user:1", ""), 3).await;
        assert!(long.expect_err("it is longer").contains("length limit"));
    }
}
