//! What each endpoint of each level is to the databases behind it.

use hyper::{Request, StatusCode};
use terrace_core::{Inspection, Runtime};

use super::*;
use crate::config::{Config, Mode};
use crate::http::app::App;
use crate::http::{Guards, Limits, Service};
use crate::levels::{Engines, LEVELS, Level, Servers, Stack};

/// All that look through many records: at which levels, their path, and a request.
const SCANS: [(&[u8], &str, &str); 9] = [
    (&[0, 1, 2, 3, 4, 5, 6, 7, 9, 10], "/v1/records", "/v1/records?prefix=a"),
    (&[7], "/v1/search", "/v1/search?q=a"),
    (&[7], "/v1/top", "/v1/top?by=reads"),
    (&[7], "/v1/activity", "/v1/activity"),
    (&[8], "/v1/documents", "/v1/documents"),
    (&[8], "/v1/documents/search", "/v1/documents/search?q=a"),
    (&[8], "/v1/transactions", "/v1/transactions?user_id=a"),
    (&[9], "/v1/conflicts", "/v1/conflicts"),
    (&[10], "/v1/analytics", "/v1/analytics?metric=writes"),
];

/// They read one key or none, whatever is behind it.
const NO_SCANS: [&str; 4] = [
    "/read/{key}",
    "/v1/records/{key}",
    "/read/transaction/{user_id}",
    "/v1/users/{user_id}/summary",
];

/// Lists that have had a turn, at any database.
fn lists(tree: &Inspection) -> u64 {
    let own = (tree.name == "concurrency-limit").then(|| tree.number("lists")).flatten();
    own.unwrap_or(0) + tree.children.iter().map(lists).sum::<u64>()
}

/// Whether there is a limit of Terrace before the database that answers.
fn has_a_limit(level: u8, path: &str) -> bool {
    // Levels 0 and 1 have a pool, documents the turns of their own engine; counts that a shard keeps are a
    // bounded sum.
    let apart = ["/v1/documents", "/v1/analytics"];
    level >= 2 && !apart.iter().any(|own| path.starts_with(own))
}

async fn check(level: &Level, stack: Stack) {
    let Stack { faces, whole } = stack;
    let table = faces.iter().flat_map(|face| face.endpoints(&whole)).collect::<Vec<_>>();
    let class = |path: &str| {
        let found = table.iter().find(|it| it.path == path && it.method == Method::GET);
        found.map(Endpoint::class)
    };
    let scans = table.iter().filter(|it| it.class() == Class::Scan).map(|it| it.path);
    let expected = SCANS.iter().filter(|(levels, ..)| levels.contains(&level.number));
    assert_eq!(
        scans.collect::<std::collections::BTreeSet<_>>(),
        expected.clone().map(|(_, path, _)| *path).collect(),
        "level {}",
        level.number
    );
    for path in NO_SCANS {
        assert_ne!(class(path), Some(Class::Scan), "level {}: {path}", level.number);
    }
    for path in ["/stats", "/clear-cache", "/health"] {
        assert!(class(path).is_none_or(|it| it == Class::Watch), "level {}: {path}", level.number);
    }
    let app = Arc::new(App::new(Service {
        name: level.name,
        faces,
        whole: Arc::clone(&whole),
        guards: Guards::default(),
        limits: Limits::default(),
        tls: None,
        runtime: Runtime::system(),
    }));
    let ask = async |path: &str| {
        let request = Request::get(path).header("host", "a").body(()).expect("a request");
        let answer = app.run(&mut Call::new(&app, request.into_parts().0, None, None)).await;
        answer.map(|reply| reply.status()).map_err(|problem| problem.status())
    };
    for (_, path, request) in expected {
        let before = lists(&whole.inspect().await);
        assert_eq!(ask(request).await, Ok(StatusCode::OK), "level {}: {request}", level.number);
        let took = lists(&whole.inspect().await) > before;
        assert_eq!(took, has_a_limit(level.number, path), "level {}: {request}", level.number);
    }
    let before = lists(&whole.inspect().await);
    let _answer = ask("/v1/records/a").await;
    assert_eq!(lists(&whole.inspect().await), before, "a read takes no turn of lists");
    whole.close().await.expect("an end");
}

/// Every endpoint that looks through many records is one by the rule, and takes a turn as one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_looks_through_many_records_is_a_scan_at_every_level() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut config = Config::default();
    config.stores.data_dir = directory.path().to_owned();
    for level in LEVELS {
        let uses_cache = level.uses_cache(&config);
        let servers = Servers::start(&config, Mode::Embedded, uses_cache).await.expect("engines");
        let (config, on) = (Arc::new(config.clone()), Runtime::system());
        let engines = Engines::new(level.number, true, config, &servers, on);
        check(level, (level.build)(&engines).await.expect("a stack")).await;
        servers.stop().await;
    }
}
