//! A client of one instance, over plain HTTP; everything that it does is recorded.

use std::time::Duration;

use reqwest::header::{HeaderMap, HeaderName};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use terrace_core::Deadline;

use crate::{Action, Condition, Consistency, History, Operation, Outcome};

/// A client gives up after this time; above the deadline of the server.
const PATIENCE: Duration = Duration::from_secs(20);

/// A client of one instance. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct Client {
    instance: String,
    url: String,
    http: reqwest::Client,
    history: History,
}

/// What came back, also recorded in the history.
pub type Answer = Operation;

/// One request that is being put together; [`Request::send`] sends it.
#[derive(Debug, Clone)]
#[must_use = "a request does nothing until it is sent"]
pub struct Request {
    client: Client,
    operation: Operation,
    wait: bool,
}

impl Client {
    /// A client of the instance at `url`, under a name for the history.
    pub fn new(instance: &str, url: &str, history: &History) -> Self {
        Self {
            instance: instance.to_owned(),
            url: url.trim_end_matches('/').to_owned(),
            http: reqwest::Client::new(),
            history: history.clone(),
        }
    }

    /// A read of a key.
    pub fn read(&self, key: &str) -> Request {
        self.request(key, Action::Read)
    }

    /// A write of a value.
    pub fn write(&self, key: &str, value: &str) -> Request {
        self.request(key, Action::Write(value.to_owned()))
    }

    /// A delete of a key.
    pub fn delete(&self, key: &str) -> Request {
        self.request(key, Action::Delete)
    }

    /// A document of the instance that is no record, such as `/health`; null when there is none.
    pub async fn document(&self, path: &str) -> Value {
        match self.http.get(format!("{}{path}", self.url)).send().await {
            Ok(answer) => answer.json().await.unwrap_or(Value::Null),
            Err(_) => Value::Null,
        }
    }

    /// One page of records whose keys begin with `prefix`, recorded as a read of each of `keys`,
    /// whether it is listed or not. The keys must fit one page.
    pub async fn list(&self, prefix: &str, keys: &[&str], tokens: &[String]) -> Vec<Answer> {
        let invoked = self.history.now();
        let path = format!("{}/v1/records?limit=1000&prefix={}", self.url, escaped(prefix));
        let mut request = self.http.get(path);
        for token in tokens {
            request = request.header("Terrace-Token", token);
        }
        let (status, headers, body) = self.answer(request).await.unwrap_or_default();
        let ended = self.history.now();
        let records = body["records"].as_array().cloned().unwrap_or_default();
        let answers = keys.iter().map(|key| {
            let mut operation = Operation::sent(&self.instance, key, Action::Read);
            (operation.invoked, operation.ended, operation.status) = (invoked, ended, status);
            operation.tokens_sent = tokens.to_vec();
            operation.take_headers(&headers);
            if status == 200 {
                let record = records.iter().find(|record| record["key"] == **key);
                operation.outcome = Outcome::Ok;
                operation.take_record(record.unwrap_or(&Value::Null));
            }
            self.history.record(operation.clone());
            operation
        });
        answers.collect()
    }

    fn request(&self, key: &str, action: Action) -> Request {
        let operation = Operation::sent(&self.instance, key, action);
        Request { client: self.clone(), operation, wait: false }
    }

    /// Status, headers and body; `None` when the connection gave none in time.
    async fn answer(&self, request: RequestBuilder) -> Option<(u16, HeaderMap, Value)> {
        let runtime = self.history.runtime();
        let deadline = Deadline::at(runtime.now() + PATIENCE);
        let answered = async {
            let response: Response = request.send().await.ok()?;
            let (status, headers) = (response.status().as_u16(), response.headers().clone());
            let bytes = response.bytes().await.ok()?;
            Some((status, headers, serde_json::from_slice(&bytes).unwrap_or_default()))
        };
        runtime.within(deadline, answered).await.flatten()
    }
}

impl Request {
    /// Sends a token back; several are sent as several headers.
    pub fn token(mut self, token: &str) -> Self {
        self.operation.tokens_sent.push(token.to_owned());
        self
    }

    /// Sends back the token of an earlier answer, if it had one.
    pub fn after(self, answer: &Answer) -> Self {
        match &answer.token_received {
            Some(token) => self.token(token),
            None => self,
        }
    }

    /// Asks for `strong`.
    pub fn strong(mut self) -> Self {
        self.operation.consistency = Consistency::Strong;
        self
    }

    /// Asks for `max-stale`.
    pub fn max_stale(mut self, bound: Duration) -> Self {
        self.operation.consistency = Consistency::MaxStale(bound);
        self
    }

    /// Changes only the record of this version.
    pub fn if_version(mut self, version: u64) -> Self {
        self.operation.condition = Some(Condition::IfVersion(version));
        self
    }

    /// Makes a record only where there is none.
    pub fn if_missing(mut self) -> Self {
        self.operation.condition = Some(Condition::IfMissing);
        self
    }

    /// Asks with `Prefer: wait` for an answer after the change was applied.
    pub fn wait(mut self) -> Self {
        self.wait = true;
        self
    }

    /// Sends an `Idempotency-Key`.
    pub fn idempotency_key(mut self, key: &str) -> Self {
        self.operation.idempotency_key = Some(key.to_owned());
        self
    }

    /// Sends the request, waits for the answer, and records both.
    ///
    /// Dropped before the answer: recorded by nobody, although the server may have done it.
    pub async fn send(self) -> Answer {
        let Self { client, mut operation, wait } = self;
        let mut request = client.http_request(&operation);
        if wait {
            request = request.header("Prefer", "wait");
        }
        operation.invoked = client.history.now();
        let answer = client.answer(request).await;
        operation.ended = client.history.now();
        operation.take(answer);
        client.history.record(operation.clone());
        operation
    }
}

impl Client {
    fn http_request(&self, operation: &Operation) -> RequestBuilder {
        let (method, body) = match &operation.action {
            Action::Read => (Method::GET, None),
            Action::Write(value) => (Method::PUT, Some(json!({ "value": value }))),
            Action::Delete => (Method::DELETE, None),
        };
        let path = format!("{}/v1/records/{}", self.url, escaped(&operation.key));
        let mut request = self.http.request(method, path);
        if let Some(body) = body {
            request = request.json(&body);
        }
        for token in &operation.tokens_sent {
            request = request.header("Terrace-Token", token);
        }
        match operation.condition {
            Some(Condition::IfVersion(version)) => {
                request = request.header("If-Match", format!("\"{version}\""));
            }
            Some(Condition::IfMissing) => request = request.header("If-None-Match", "*"),
            None => {}
        }
        if let Some(key) = &operation.idempotency_key {
            request = request.header("Idempotency-Key", key);
        }
        match operation.consistency {
            Consistency::Default => request,
            Consistency::Strong => request.header("Terrace-Consistency", "strong"),
            Consistency::MaxStale(bound) => {
                request.header("Terrace-Consistency", format!("max-stale={}", bound.as_millis()))
            }
        }
    }
}

impl Operation {
    fn take(&mut self, answer: Option<(u16, HeaderMap, Value)>) {
        // A connection that gave no answer: a read changed nothing, a change may have been made.
        let Some((status, headers, body)) = answer else {
            self.outcome = if self.changes() { Outcome::Unknown } else { Outcome::Fail };
            return;
        };
        self.status = status;
        self.take_headers(&headers);
        let missing = status == 404 && self.action == Action::Read;
        let succeeded = StatusCode::from_u16(status).is_ok_and(|status| status.is_success());
        self.outcome = match status {
            _ if succeeded || missing => Outcome::Ok,
            // A problem of a gateway or of the server says nothing about what became of a change.
            500 | 502 | 504 if self.changes() => Outcome::Unknown,
            _ => Outcome::Fail,
        };
        if succeeded {
            self.take_record(&body);
        }
    }

    fn take_record(&mut self, record: &Value) {
        if self.action == Action::Read {
            self.found = record["value"].as_str().map(str::to_owned);
        }
        self.version = record["version"].as_u64().or(self.version);
    }

    fn take_headers(&mut self, headers: &HeaderMap) {
        let text = |name: &'static str| {
            let value = headers.get(HeaderName::from_static(name))?;
            value.to_str().ok().map(str::to_owned)
        };
        self.token_received = text("terrace-token");
        self.origin = text("terrace-origin");
        self.durability = text("terrace-durability");
        self.age = text("age").and_then(|age| age.parse().ok()).map(Duration::from_secs);
    }
}

/// A key or prefix as a part of a URL.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if plain(byte) {
            escaped.push(char::from(byte));
        } else {
            escaped.push_str(&format!("%{byte:02X}"));
        }
        escaped
    })
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn keys_are_escaped_byte_by_byte() {
        assert_eq!(escaped("a/b ü-1"), "a%2Fb%20%C3%BC-1");
    }
}
