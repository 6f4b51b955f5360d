//! The integration tests of the server: one binary.

#[expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and real programs run in real time"
)]
mod freshness;
#[expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and the program under test runs in real time"
)]
mod program;
#[expect(
    clippy::expect_used,
    clippy::disallowed_methods,
    reason = "a test fails by panicking, and real servers run in real time"
)]
mod replicas;

mod settings;

mod routes {
    mod server;

    mod analytics;
    mod batch;
    mod connections;
    mod documents;
    mod errors;
    mod fuzzed;
    mod health;
    mod http2;
    mod openapi;
    mod queued;
    mod records;
    mod regions;
    mod statistics;
    mod tls;
}
