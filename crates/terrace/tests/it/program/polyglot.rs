//! Level 8 as people use it: its API, its outages, its reconciling.

mod kills;
mod outages;
mod reconciling;

use std::path::Path;

use reqwest::StatusCode;
use serde_json::{Value, json};
use terrace_lab::testing::fresh_database;
use terrace_lab::{MongoOptions, MongoServer};

use super::cqrs::sql;
use super::{Program, Stores, own_redis};

impl Program {
    async fn send(&self, method: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send_with(method, path, &[], body).await
    }

    async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Value,
    ) -> (StatusCode, Value) {
        let method = method.parse().expect("a method");
        let mut request = self.client.request(method, format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.header("content-type", "application/json").body(body.to_string());
        }
        let answer = request.send().await.expect("an answer");
        let status = answer.status();
        let text = answer.text().await.expect("a body");
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    async fn json(&self, path: &str) -> Value {
        let (status, body) = self.send("GET", path, &Value::Null).await;
        assert_eq!(status, 200, "{path}: {body}");
        body
    }

    /// The summary of a user that has all that was acknowledged; a busy machine may take longer than
    /// a request waits.
    async fn summary(&self, user: &str) -> Value {
        let path = format!("/v1/users/{user}/summary");
        let strong = [("terrace-consistency", "strong")];
        let within = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
        loop {
            let (status, summary) = self.send_with("GET", &path, &strong, &Value::Null).await;
            if status == 200 {
                return summary;
            }
            assert!(tokio::time::Instant::now() < within, "{user}: {summary}");
        }
    }

    /// Adds a transaction by the documents' API.
    async fn pay(&self, user: &str, amount: f64) -> (StatusCode, Value) {
        let body = json!({"user_id": user, "amount": amount, "transaction_type": "credit"});
        self.send("POST", "/write/transaction", &body).await
    }
}

/// A document server of this test's own, which it may kill.
async fn own_documents(directory: &Path) -> MongoServer {
    let options = MongoOptions::new(directory.join("documents"));
    MongoServer::start(options).await.expect("the document server starts")
}

#[tokio::test]
async fn transactions_are_exact_and_the_list_is_emptied_by_a_write() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    let none = program.json("/read/transaction/user123").await;
    assert_eq!(
        none,
        json!({"success": false, "key": "user123", "value": [], "source": "postgres",
            "message": "No transactions found"})
    );
    let (status, first) = program.pay("user123", 100.5).await;
    assert_eq!(status, 200, "{first}");
    assert_eq!(first["message"], "Transaction written to PostgreSQL");
    assert_eq!((&first["success"], &first["stored_in"]), (&json!(true), &json!("PostgreSQL")));
    let read = program.json("/read/transaction/user123").await;
    assert_eq!((&read["source"], &read["message"]), (&json!("postgres"), &Value::Null));
    assert_eq!(read["value"][0]["id"], first["transaction_id"]);
    assert_eq!(read["value"][0]["amount"], 100.5);
    assert_eq!(read["value"][0]["transaction_type"], "credit");
    assert!(!read["value"][0]["created_at"].as_str().expect("a time").ends_with('Z'));
    assert_eq!(program.json("/read/transaction/user123").await["source"], "cache");
    let text = json!({"user_id": "user123", "amount": "-0.10", "transaction_type": "fee"});
    assert_eq!(program.send("POST", "/write/transaction", &text).await.0, 200);
    let read = program.json("/read/transaction/user123").await;
    assert_eq!(read["source"], "postgres");
    assert_eq!(read["value"].as_array().map(Vec::len), Some(2));
    assert_eq!(read["value"][0]["amount"], -0.1, "the latest first");
    for amount in ["1.001", "1e9", "\"x\"", "null", "true", "[]", "100000000"] {
        let body = format!(r#"{{"user_id":"u","amount":{amount},"transaction_type":"t"}}"#);
        let (status, problem) =
            program.send("POST", "/write/transaction", &serde_json::from_str(&body).unwrap()).await;
        assert_eq!(status, 422, "{amount}: {problem}");
        assert!(problem["detail"].as_str().expect("a detail").contains("amount"), "{problem}");
    }
    assert_eq!(program.json("/stats").await["total_transactions"], 2);
    assert!(program.terminate().await.success());
}

#[tokio::test]
async fn documents_come_back_as_they_were_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    let missing = program.json("/read/document/none").await;
    assert_eq!(
        missing,
        json!({"success": false, "key": "none", "data": {"message": "Document not found"},
            "from_cache": false, "stored_in": "MongoDB"})
    );
    let text = r#"{"z":1.0,"a":9007199254740993,"":{"$oid":"x"},"a.b":[1e+300,null]}"#;
    let url = format!("{}/v1/documents/a%2Fb", program.url());
    let put = program.client.put(&url).header("content-type", "application/json").body(text);
    let put = put.send().await.expect("an answer");
    assert_eq!(put.status(), 201);
    let etag = put.headers()["etag"].clone();
    for origin in ["primary", "far"] {
        let got = program.client.get(&url).send().await.expect("an answer");
        assert_eq!(
            (&got.headers()["etag"], &got.headers()["terrace-origin"]),
            (&etag, &origin.parse().unwrap())
        );
        assert_eq!(got.text().await.expect("a body"), text);
    }
    let (status, written) =
        program.send("POST", "/write/document", &json!({"key": "k", "data": {}})).await;
    assert_eq!(
        (status, &written["data"], &written["from_cache"]),
        (StatusCode::OK, &json!({}), &json!(false))
    );
    assert_eq!(program.json("/read/document/k").await["from_cache"], false);
    let read = program.json("/read/document/k").await;
    assert_eq!(
        read,
        json!({"success": true, "key": "k", "data": {}, "from_cache": true, "stored_in": "Redis (cache)"})
    );
    for body in [r#"{"a":9223372036854775808}"#, "[]", "1", r#"{"a\u0000":1}"#, "{"] {
        let put = program.client.put(&url).header("content-type", "application/json").body(body);
        assert_eq!(put.send().await.expect("an answer").status(), 422, "{body}");
    }
    let stale = [("if-match", "\"999\"")];
    assert_eq!(program.send_with("PUT", "/v1/documents/a%2Fb", &stale, &json!({})).await.0, 412);
    let list = program.json("/v1/documents?prefix=a").await;
    assert_eq!(list["documents"][0]["key"], "a/b");
    assert_eq!(program.send("DELETE", "/v1/documents/a%2Fb", &Value::Null).await.0, 204);
    assert_eq!(program.send("GET", "/v1/documents/a%2Fb", &Value::Null).await.0, 404);
    assert_eq!(program.json("/stats").await["total_documents"], 1);
}

#[tokio::test]
async fn documents_are_found_by_what_is_in_them() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    for (key, data) in [
        ("ada", json!({"name": "Ada Lovelace", "city": "London", "tags": ["math", "code"]})),
        ("bob", json!({"name": "Bob", "city": "Oslo", "age": 42})),
        ("search", json!({"name": "Search", "city": "Oslo"})),
    ] {
        let path = format!("/v1/documents/{}", key.replacen('s', "%73", 1));
        assert_eq!(program.send("PUT", &path, &data).await.0, 201, "{key}");
    }
    let keys = |body: &Value| -> Vec<String> {
        let documents = body["documents"].as_array().expect("documents").iter();
        documents.map(|it| it["key"].as_str().expect("a key").to_owned()).collect()
    };
    for (query, found) in [
        ("q=lovelace%20ADA", vec!["ada"]),
        ("field=city&equals=%22Oslo%22", vec!["bob", "search"]),
        ("field=tags&equals=%22code%22", vec!["ada"]),
        ("field=age&equals=42", vec!["bob"]),
        ("q=nobody", vec![]),
    ] {
        let body = program.json(&format!("/v1/documents/search?{query}")).await;
        assert_eq!(keys(&body), found, "{query}");
    }
    for query in ["", "q=", "q=a&field=b", "field=a.b&equals=1", "field=a&equals=x"] {
        let path = format!("/v1/documents/search?{query}");
        assert_eq!(program.send("GET", &path, &Value::Null).await.0, 422, "{query}");
    }
}

#[tokio::test]
async fn a_summary_with_the_token_of_a_transaction_has_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    assert_eq!(program.send("GET", "/v1/users/u/summary", &Value::Null).await.0, 404);
    for number in 1..=20 {
        let body = json!({"user_id": "a/u", "amount": 0.1, "transaction_type": "credit"});
        let (status, posted) = program.send("POST", "/v1/transactions", &body).await;
        assert_eq!(status, 201, "{posted}");
        let token = posted["token"].as_str().expect("a token");
        let with = [("terrace-token", token)];
        let (status, summary) =
            program.send_with("GET", "/v1/users/a%2Fu/summary", &with, &Value::Null).await;
        assert_eq!(
            (status, &summary["transactions"]),
            (StatusCode::OK, &json!(number)),
            "{summary}"
        );
    }
    let summary = program.json("/v1/users/a%2Fu/summary").await;
    assert_eq!((&summary["balance"], &summary["user_id"]), (&json!(2.0), &json!("a/u")));
    let first = program.json("/v1/transactions?user_id=a%2Fu&limit=15").await;
    let cursor = first["next_cursor"].as_str().expect("a cursor");
    let path = format!("/v1/transactions?user_id=a%2Fu&limit=15&cursor={cursor}");
    let second = program.json(&path).await;
    let count = |body: &Value| body["transactions"].as_array().map(Vec::len);
    assert_eq!((count(&first), count(&second)), (Some(15), Some(5)));
    assert_eq!(second["next_cursor"], Value::Null);
}

#[tokio::test]
async fn a_repeated_post_is_one_transaction() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    let body = json!({"user_id": "u", "amount": 5, "transaction_type": "credit"});
    let key = [("idempotency-key", "order-7")];
    let first = program.send_with("POST", "/v1/transactions", &key, &body).await;
    let second = program.send_with("POST", "/v1/transactions", &key, &body).await;
    assert_eq!((first.0, first.1["id"].as_u64()), (second.0, second.1["id"].as_u64()));
    assert_eq!(first.1["created_at"], second.1["created_at"]);
    let other = json!({"user_id": "u", "amount": 6, "transaction_type": "credit"});
    assert_eq!(program.send_with("POST", "/v1/transactions", &key, &other).await.0, 422);
    assert_eq!(program.json("/stats").await["total_transactions"], 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_the_described_system_are_taken_over() {
    let directory = tempfile::tempdir().expect("a directory");
    let (redis, documents) =
        tokio::join!(own_redis(directory.path()), own_documents(directory.path()));
    let database = fresh_database();
    let tables = "CREATE TABLE transactions (id SERIAL PRIMARY KEY, user_id VARCHAR(255) NOT NULL, \
         amount DECIMAL(10, 2) NOT NULL, transaction_type VARCHAR(50) NOT NULL, \
         created_at TIMESTAMP DEFAULT CURRENT_TIMESTAMP); \
         INSERT INTO transactions (user_id, amount, transaction_type, created_at) \
         VALUES ('old', 12.34, 'credit', '2024-01-02 03:04:05'), ('old', -2, 'debit', '2024-01-03')";
    sql(&database, tables).await;
    let (cache, url) = (redis.url(), documents.url());
    let stores = Stores::Servers { database: "", cache: &cache };
    let owners = [("POSTGRES_URL", &*database), ("MONGODB_URL", &*url)];
    let program = Program::serve_with(8, &stores, &[], &owners).await;
    let read = program.json("/read/transaction/old").await;
    assert_eq!(read["value"][1]["amount"], 12.34);
    assert_eq!(read["value"][1]["created_at"], "2024-01-02T03:04:05.000000");
    let (_, posted) = program.pay("old", 1.0).await;
    assert_eq!(posted["transaction_id"], 3);
    let entry = json!({"user_id": "old", "amount": 1, "transaction_type": "x"});
    assert_eq!(program.send("POST", "/v1/transactions", &entry).await.0, 201);
    let summary = program.summary("old").await;
    assert_eq!((&summary["transactions"], &summary["balance"]), (&json!(4), &json!(12.34)));
    let health = program.json("/health").await;
    assert_eq!(health["databases"], json!(["PostgreSQL", "MongoDB", "Redis"]));
    assert_eq!(health["engines"][0], "PostgreSQL");
    assert_eq!(health["engines"][2], "Redis");
}
