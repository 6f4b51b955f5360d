//! Requests made from the API description alone: none of them is refused as invalid.

use std::collections::BTreeMap;
use std::path::Path;

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use proptest::string::string_regex;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value, json};

use super::{Program, Stores};

/// Requests of each operation.
const REQUESTS: usize = 24;

/// Repetitions are kept short: every length has the same form.
const LONGEST: u64 = 8;

/// How deep values lie within each other.
const DEEPEST: u8 = 3;

/// Makes values of schemas, the same ones in each run.
struct Maker {
    runner: TestRunner,
    /// Schemas that have names.
    named: Value,
    depth: u8,
}

impl Maker {
    fn one<S: Strategy>(&mut self, of: S) -> S::Value {
        of.new_tree(&mut self.runner).expect("a value").current()
    }

    fn is(&mut self) -> bool {
        self.one(any::<bool>())
    }

    fn up_to(&mut self, most: u64) -> u64 {
        self.one(0..=most)
    }

    /// A value that the schema allows.
    fn value(&mut self, schema: &Value) -> Value {
        if let Some(name) = schema["$ref"].as_str().and_then(|it| it.rsplit('/').next()) {
            let named = self.named[name].clone();
            self.depth += 1;
            let value = if self.depth > DEEPEST { Value::Null } else { self.value(&named) };
            self.depth -= 1;
            return value;
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = self.up_to(choices.len() as u64 - 1);
            return self.value(&choices[usize::try_from(choice).expect("small")]);
        }
        if let Some(words) = schema["enum"].as_array() {
            let word = self.up_to(words.len() as u64 - 1);
            return words[usize::try_from(word).expect("small")].clone();
        }
        match schema["type"].as_str().expect("a type") {
            "null" => Value::Null,
            "number" if schema["multipleOf"] == 0.01 => {
                let cents = self.one(-9_999_999_999_i64..=9_999_999_999);
                (cents as f64 / 100.0).into()
            }
            "number" => self.one(prop_oneof![
                any::<i64>().prop_map(Value::from),
                any::<f64>().prop_map(Value::from)
            ]),
            "string" => self.text(schema).into(),
            "boolean" => self.is().into(),
            "integer" => {
                let least = schema["minimum"].as_u64().unwrap_or(0);
                let most = schema["maximum"].as_u64().unwrap_or(i64::MAX.unsigned_abs());
                self.one(prop_oneof![Just(least), Just(most), least..=most]).into()
            }
            "array" => {
                let least = schema["minItems"].as_u64().unwrap_or(0);
                let count = least + self.up_to(LONGEST);
                (0..count).map(|_| self.value(&schema["items"])).collect()
            }
            "object" => self.object(schema).into(),
            other => panic!("{other}"),
        }
    }

    fn object(&mut self, schema: &Value) -> Map<String, Value> {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        let mut object = Map::new();
        if let Some(others) = schema.get("additionalProperties").filter(|it| it.is_object()) {
            for _ in 0..self.up_to(LONGEST) {
                let name = self.text(&schema["propertyNames"]);
                object.insert(name, self.value(others));
            }
        }
        for (name, schema) in schema["properties"].as_object().into_iter().flatten() {
            if required.contains(&json!(name)) || self.is() {
                object.insert(name.clone(), self.value(schema));
            }
        }
        object
    }

    fn text(&mut self, schema: &Value) -> String {
        let least = schema["minLength"].as_u64().unwrap_or(0);
        let most = schema["maxLength"].as_u64().unwrap_or(u64::MAX).min(2000);
        let pattern = schema["pattern"].as_str().unwrap_or("[ -~]{0,9}");
        let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
        let pattern = pattern
            .replace("{1,255}", "{1,9}")
            .replace(")+~", "){1,9}~")
            .replace("{0,1024}", "{0,4}");
        let form = string_regex(&pattern).unwrap_or_else(|error| panic!("{pattern}: {error}"));
        let fits = move |text: &String| {
            let length = text.chars().count() as u64;
            least <= length && length <= most
        };
        self.one(form.prop_filter("a length", fits))
    }
}

/// What a parameter of a path or a query is sent as.
fn plain(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    utf8_percent_encode(&text, NON_ALPHANUMERIC).to_string()
}

async fn send(program: &Program, maker: &mut Maker, path: &str, method: &str, operation: &Value) {
    let (mut path, mut query, mut headers) = (path.to_owned(), Vec::new(), BTreeMap::new());
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        if parameter["required"] != true && maker.is() {
            continue;
        }
        let (name, value) = (parameter["name"].as_str().expect("a name"), &parameter["schema"]);
        let value = maker.value(value);
        match parameter["in"].as_str().expect("a place") {
            "path" => path = path.replace(&format!("{{{name}}}"), &plain(&value)),
            // Its fields are parameters that go together.
            "query" if value.is_object() => {
                let fields = value.as_object().into_iter().flatten();
                query.extend(fields.map(|(name, value)| format!("{name}={}", plain(value))));
            }
            "query" => query.push(format!("{name}={}", plain(&value))),
            "header" => {
                headers.insert(name.to_owned(), value.as_str().expect("text").to_owned());
            }
            other => panic!("{other}"),
        }
    }
    let url = format!("{}{path}?{}", program.url(), query.join("&"));
    let verb = method.to_uppercase().parse::<reqwest::Method>().expect("a method");
    let mut request = program.client.request(verb, url.trim_end_matches('?'));
    if operation["security"].is_array() {
        request = request.header("X-API-Key", KEY);
    }
    for (name, value) in &headers {
        request = request.header(name, value);
    }
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let body = (!schema.is_null()).then(|| maker.value(schema));
    if let Some(body) = &body {
        request = request.json(body);
    }
    let answer = request.send().await.expect("an answer");
    let status = answer.status().as_u16();
    let text = answer.text().await.unwrap_or_default();
    let sent = format!("{method} {url} {headers:?} {body:?}");
    // Another request may have had the same key.
    let reused = text.contains("was used for another request");
    assert!(![400, 422, 500].contains(&status) || reused, "{status} {text}\n{sent}");
    let described = &operation["responses"];
    assert!(described.get(status.to_string()).is_some(), "{status} is not described\n{sent}");
}

/// The key of the settings.
const KEY: &str = "a key that this test has made up";

pub(super) async fn described(level: u8, directory: &Path) -> (Program, Value) {
    let program =
        Program::serve_with(level, &Stores::Embedded(directory), &[], &[("API_KEY", KEY)]).await;
    let document = program.get("/openapi.json").await.json().await.expect("JSON");
    (program, document)
}

/// Path, method and operation of each.
fn operations(document: &Value) -> impl Iterator<Item = (&String, &String, &Value)> {
    let paths = document["paths"].as_object().expect("paths").iter();
    paths.flat_map(|(path, item)| {
        let item = item.as_object().expect("operations").iter();
        item.map(move |(method, operation)| (path, method, operation))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_made_from_the_description_are_valid() {
    for number in [1, 6, 7, 8, 9, 10] {
        let directory = tempfile::tempdir().expect("a directory");
        let (program, document) = described(number, directory.path()).await;
        let named = document["components"]["schemas"].clone();
        let mut maker = Maker { runner: TestRunner::deterministic(), named, depth: 0 };
        for (path, method, operation) in operations(&document) {
            for _ in 0..REQUESTS {
                send(&program, &mut maker, path, method, operation).await;
            }
        }
        program.kill().await;
    }
}

const LIMITS: [&str; 5] = [
    "RateLimit-Policy",
    "RateLimit",
    "X-RateLimit-Limit",
    "X-RateLimit-Remaining",
    "X-RateLimit-Reset",
];

/// What a level asks before its endpoints is described where it is asked, and nowhere else.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_and_limits_are_described_where_they_count() {
    let directory = tempfile::tempdir().expect("a directory");
    let (program, document) = described(10, directory.path()).await;
    let schemes = &document["components"]["securitySchemes"];
    assert_eq!(schemes["X-API-Key"]["name"], "X-API-Key");
    assert_eq!(schemes["Bearer"]["scheme"], "bearer");
    for (path, method, operation) in operations(&document) {
        let place = format!("{}{}", program.url(), path.replace("{key}", "a"));
        let verb = method.to_uppercase().parse::<reqwest::Method>().expect("a method");
        let refused = program.client.request(verb.clone(), &place).send().await.expect("an answer");
        let answers = &operation["responses"];
        let needs_key = refused.status() == 401;
        assert_eq!(operation["security"].is_array(), needs_key, "{method} {path}");
        for status in ["401", "403", "429"] {
            assert_eq!(answers.get(status).is_some(), needs_key, "{method} {path}: {status}");
        }
        if !needs_key {
            continue;
        }
        let scope = if *method == "get" || *method == "head" || path == "/v1/batch/read" {
            "read"
        } else {
            "write"
        };
        assert_eq!(operation["security"], json!([{"X-API-Key": [scope]}, {"Bearer": [scope]}]));
        assert!(answers["429"]["headers"]["Retry-After"].is_object());
        assert!(answers["401"]["headers"]["WWW-Authenticate"].is_object());
        let asked = program.client.request(verb, &place).header("X-API-Key", KEY).send().await;
        let answer = asked.expect("an answer");
        let described = &answers[answer.status().as_str()]["headers"];
        for name in LIMITS {
            assert!(answer.headers().contains_key(name), "{method} {path}: {name}");
            assert!(described[name].is_object(), "{method} {path}: {name} is not described");
        }
    }
    program.kill().await;
    let directory = tempfile::tempdir().expect("a directory");
    let (program, document) = described(2, directory.path()).await;
    assert!(document["components"]["securitySchemes"].is_null());
    for (path, method, operation) in operations(&document) {
        assert!(operation["security"].is_null(), "{method} {path}");
        assert!(operation["responses"].get("429").is_none(), "{method} {path}");
    }
    program.kill().await;
}
