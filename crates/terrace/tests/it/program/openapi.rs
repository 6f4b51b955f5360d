//! Requests made from the API description alone: none of them is refused as invalid.

use std::collections::BTreeMap;

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

/// Makes values of schemas, the same ones in each run.
struct Maker(TestRunner);

impl Maker {
    fn one<S: Strategy>(&mut self, of: S) -> S::Value {
        of.new_tree(&mut self.0).expect("a value").current()
    }

    fn is(&mut self) -> bool {
        self.one(any::<bool>())
    }

    fn up_to(&mut self, most: u64) -> u64 {
        self.one(0..=most)
    }

    /// A value that the schema allows.
    fn value(&mut self, schema: &Value) -> Value {
        if let Some(choices) = schema["oneOf"].as_array() {
            let choice = self.up_to(choices.len() as u64 - 1);
            return self.value(&choices[usize::try_from(choice).expect("small")]);
        }
        if let Some(words) = schema["enum"].as_array() {
            let word = self.up_to(words.len() as u64 - 1);
            return words[usize::try_from(word).expect("small")].clone();
        }
        match schema["type"].as_str().expect("a type") {
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
        for (name, schema) in schema["properties"].as_object().expect("properties") {
            if required.contains(&json!(name)) || self.is() {
                object.insert(name.clone(), self.value(schema));
            }
        }
        object
    }

    fn text(&mut self, schema: &Value) -> String {
        let least = schema["minLength"].as_u64().unwrap_or(0);
        let most = schema["maxLength"].as_u64().unwrap_or(u64::MAX).min(2000);
        let pattern = schema["pattern"].as_str().expect("a form");
        let pattern = pattern.trim_start_matches('^').trim_end_matches('$');
        let pattern = pattern.replace("{1,255}", "{1,9}").replace("{0,1024}", "{0,4}");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_made_from_the_description_are_valid() {
    for level in [1, 6, 7, 9] {
        let directory = tempfile::tempdir().expect("a directory");
        let program = Program::serve(level, &Stores::Embedded(directory.path())).await;
        let document: Value = program.get("/openapi.json").await.json().await.expect("JSON");
        let mut maker = Maker(TestRunner::deterministic());
        for (path, item) in document["paths"].as_object().expect("paths") {
            for (method, operation) in item.as_object().expect("operations") {
                for _ in 0..REQUESTS {
                    send(&program, &mut maker, path, method, operation).await;
                }
            }
        }
        program.kill().await;
    }
}
