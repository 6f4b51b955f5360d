//! One private document server: its life, and that it is called what it is.

use std::net::TcpStream;

use terrace_lab::{LabErrorKind, MongoOptions, MongoServer, find_program};

#[tokio::test]
async fn it_keeps_its_port_over_stops_and_crashes() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = MongoOptions::new(directory.path().join("a b"));
    let server = MongoServer::start(options.clone()).await.expect("a server");
    let port = server.port();
    assert_eq!(server.url(), format!("mongodb://127.0.0.1:{port}/"));
    let found = find_program("mongod").expect("a document server");
    assert_eq!(server.program() == "MongoDB", found.ends_with("mongod"), "{}", server.program());

    let error = MongoServer::start(options.clone()).await.expect_err("a second starter");
    assert_eq!(error.kind(), LabErrorKind::DirectoryInUse);
    server.kill();
    assert!(!server.is_running());
    server.restart().await.expect("a restart after a crash");
    server.restart().await.expect("a restart after a stop");
    assert!(server.is_running());
    TcpStream::connect(("127.0.0.1", port)).expect("the same port");
    drop(server);
    let again = MongoServer::start(options).await.expect("a later start");
    assert_eq!(again.port(), port);
}
