//! The integration tests of the server: one binary.

mod program;

mod routes {
    mod server;

    mod batch;
    mod connections;
    mod documents;
    mod errors;
    mod health;
    mod openapi;
    mod records;
    mod statistics;
}
