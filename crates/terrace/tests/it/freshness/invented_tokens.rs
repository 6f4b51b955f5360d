//! One client's token does not reach others.

use terrace_core::{Position, Token};
use terrace_prove::Client;

use super::field::Field;
use super::{rounds, until};

/// Far above every token that Terrace makes for one key.
const LONGEST: usize = 400;

/// A token that asks for a place in 60 histories that nobody has.
fn invented() -> String {
    let mut token = Token::default();
    for number in 0..60 {
        let name = format!("invented-{number:03}-{}", "x".repeat(200));
        token.merge(&Token::of(name, Position::NONE));
    }
    token.to_text()
}

async fn a_token_stays_with_its_client(level: u8) {
    for _ in 0..rounds() {
        let field = Field::new(level).await;
        let (a, b) = (field.instance("a").await, field.instance("b").await);
        a.writes("cold", "1").await;
        let token = invented();
        for _ in 0..3 {
            let own = a.client.read("cold").token(&token).send().await;
            assert!(own.status != 0 && own.status != 500, "{own}");
        }
        let longest = async |client: &Client| {
            let mut longest = 0;
            for _ in 0..5 {
                let hit = client.read("cold").send().await;
                assert!(hit.has_read(), "{hit}");
                longest = longest.max(hit.token_received.as_ref().map_or(0, String::len));
            }
            longest
        };
        for instance in [&a, &b] {
            let length = longest(&instance.client).await;
            assert!(length <= LONGEST, "others get a token of {length} bytes");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_2() {
    a_token_stays_with_its_client(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_level_5() {
    a_token_stays_with_its_client(5).await;
}

/// Terrace takes its own token of a batch over many shards.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_of_many_shards_is_taken() {
    let field = Field::new(4).await;
    let many = [
        ("TERRACE_SHARDS_COUNT", "70"),
        ("TERRACE_DATABASE_POOL_MIN", "1"),
        ("TERRACE_DATABASE_POOL_MAX", "2"),
    ];
    let a = field.instance_with("a", &field.database, &many).await;
    let writes: Vec<_> = (0..900)
        .map(|number| serde_json::json!({"op": "put", "key": format!("k{number}"), "value": "1"}))
        .collect();
    let http = reqwest::Client::new();
    let url = format!("{}/v1/batch/write", a.program.url());
    let mut token = None;
    until("the batch is written", async || {
        let sent = http.post(&url).json(&serde_json::json!({ "writes": writes })).send().await;
        let answer = sent.expect("an answer");
        if answer.status() != 200 {
            return false;
        }
        token = answer.headers().get("terrace-token").cloned();
        true
    })
    .await;
    let token = token.expect("a token").to_str().expect("text").to_owned();
    let own = a.client.read("k1").token(&token).send().await;
    assert!(own.has_read(), "Terrace's own token: {own}");
}
