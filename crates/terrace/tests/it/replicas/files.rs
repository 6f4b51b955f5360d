//! Level 3 over files: the program as people run it.

use serde_json::Value;

use crate::program::{Program, Stores};

async fn json(program: &Program, path: &str) -> (Value, Option<String>) {
    let answer = program.get(path).await;
    let origin = answer.headers().get("terrace-origin");
    let origin = origin.map(|origin| origin.to_str().expect("text").to_owned());
    (answer.json().await.expect("JSON"), origin)
}

#[tokio::test]
async fn replicas_answer_reads_and_the_cache_those_after() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(3, &Stores::Embedded(directory.path())).await;
    assert!(program.write("a", "1").await);
    let (first, _) = json(&program, "/read/a").await;
    assert_eq!((&first["value"], &first["from_cache"]), (&"1".into(), &false.into()));
    let (second, origin) = json(&program, "/read/a").await;
    assert_eq!((&second["from_cache"], &second["from_replica"]), (&true.into(), &false.into()));
    assert_eq!(origin.as_deref(), Some("far"));

    let (health, _) = json(&program, "/health").await;
    for (part, word) in [("status", "healthy"), ("primary", "healthy"), ("replica", "healthy")] {
        assert_eq!(health[part], word, "{health}");
    }
    assert_eq!(
        (&health["layer"], &health["cache"]),
        (&"3-read-replicas".into(), &"healthy".into())
    );
    let (figures, _) = json(&program, "/stats").await;
    assert!(figures["primary_pool_size"].as_u64() > Some(0), "{figures}");
    assert!(figures["replica_pool_size"].as_u64() > figures["primary_pool_size"].as_u64());
    assert_eq!(figures["cache_hits"], 1, "{figures}");

    let more = ["--no-cache"];
    program.terminate().await;
    let program = Program::serve_with(3, &Stores::Embedded(directory.path()), &more, &[]).await;
    let (found, origin) = json(&program, "/read/a").await;
    assert_eq!((&found["value"], &found["from_replica"]), (&"1".into(), &true.into()));
    assert!(origin.expect("an origin").starts_with("replica:"));
}
