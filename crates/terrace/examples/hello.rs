//! The reference of `scripts/ratios`: the least that axum can answer with a path parameter and a
//! JSON body, `GET /read/{name}` → `{"hello": name}`.
//!
//! Run it with `cargo run --release -p terrace --example hello -- 9000` (a port on 127.0.0.1).

use std::io::{Error, ErrorKind};

use axum::extract::Path;
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let port = std::env::args().nth(1).and_then(|port| port.parse::<u16>().ok());
    let port = port.ok_or_else(|| Error::new(ErrorKind::InvalidInput, "usage: hello PORT"))?;
    let listener = TcpListener::bind(("127.0.0.1", port)).await?.tap_io(|connection| {
        // Nagle's algorithm delays small answers; whoever measures HTTP turns it off.
        let _ = connection.set_nodelay(true);
    });
    axum::serve(listener, Router::new().route("/read/{name}", get(hello))).await
}

async fn hello(Path(name): Path<String>) -> Json<Value> {
    Json(json!({ "hello": name }))
}
