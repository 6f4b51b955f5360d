//! `docs/http.md`: endpoints, headers and problems, from what the levels say of themselves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use serde_json::Value;

use super::openapi::described;

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// What all levels describe.
#[derive(Default)]
struct Reference {
    /// By path and method: the summary, and the levels.
    endpoints: BTreeMap<(String, &'static str), (String, Vec<u8>)>,
    asked: BTreeMap<String, String>,
    answered: BTreeMap<String, String>,
    /// By name: the statuses, and the meaning.
    problems: BTreeMap<String, (BTreeSet<String>, String)>,
}

impl Reference {
    fn learn(&mut self, level: u8, document: &Value) {
        for (path, item) in document["paths"].as_object().expect("paths") {
            for method in METHODS {
                let operation = &item[method];
                if operation.is_null() {
                    continue;
                }
                let text = |of: &Value| of.as_str().expect("a text").to_owned();
                let known = self.endpoints.entry((path.clone(), method));
                known.or_insert_with(|| (text(&operation["summary"]), Vec::new())).1.push(level);
                for parameter in operation["parameters"].as_array().into_iter().flatten() {
                    if parameter["in"] == "header" {
                        let meaning = text(&parameter["description"]);
                        self.asked.entry(text(&parameter["name"])).or_insert(meaning);
                    }
                }
                for (status, answer) in operation["responses"].as_object().expect("responses") {
                    self.learn_answer(status, answer);
                }
            }
        }
    }

    fn learn_answer(&mut self, status: &str, answer: &Value) {
        for (name, header) in answer["headers"].as_object().into_iter().flatten() {
            let meaning = header["description"].as_str().unwrap_or_default().to_owned();
            self.answered.entry(name.clone()).or_insert(meaning);
        }
        if answer["content"]["application/problem+json"].is_null() {
            return;
        }
        for (name, meaning) in problems(answer["description"].as_str().expect("a text")) {
            let known = self.problems.entry(name).or_insert_with(|| (BTreeSet::new(), meaning));
            known.0.insert(status.to_owned());
        }
    }

    fn page(&self) -> String {
        let mut page =
            "# HTTP\n\nMade from `/openapi.json` of all levels, which also has bodies and forms. \
             `TERRACE_BLESS=1 cargo test -p terrace --test it reference` writes this page.\n"
                .to_owned();
        table(&mut page, "Endpoints", ["endpoint", "levels", "what it does"]);
        for ((path, method), (summary, levels)) in &self.endpoints {
            row(
                &mut page,
                [&format!("`{} {path}`", method.to_uppercase()), &spans(levels), summary],
            );
        }
        for (title, headers) in
            [("Headers of requests", &self.asked), ("Headers of answers", &self.answered)]
        {
            table(&mut page, title, ["header", "meaning"]);
            headers
                .iter()
                .for_each(|(name, meaning)| row(&mut page, [&format!("`{name}`"), meaning]));
        }
        table(&mut page, "Problems", ["end of `type`", "status", "what it is, and what to do"]);
        for (name, (statuses, meaning)) in &self.problems {
            let statuses = statuses.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
            row(&mut page, [&format!("`{name}`"), &statuses, meaning]);
        }
        page
    }
}

/// Each "`name`: meaning" of a text.
fn problems(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::<(String, String)>::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('`') {
        let (name, after) = after.split_once('`').expect("a pair");
        let is_name =
            after.starts_with(": ") && name.chars().all(|c| c.is_ascii_lowercase() || c == '-');
        match found.last_mut() {
            Some((_, meaning)) => meaning.push_str(before),
            None => assert_eq!(before, "", "{text}"),
        }
        rest = match (is_name, found.last_mut()) {
            (true, _) => {
                found.push((name.to_owned(), String::new()));
                &after[2..]
            }
            (false, Some((_, meaning))) => {
                write!(meaning, "`{name}`").expect("memory");
                after
            }
            (false, None) => panic!("no name: {text}"),
        };
    }
    if let Some((_, meaning)) = found.last_mut() {
        meaning.push_str(rest);
    }
    found.into_iter().map(|(name, meaning)| (name, meaning.trim().to_owned())).collect()
}

fn table<const N: usize>(page: &mut String, title: &str, headings: [&str; N]) {
    write!(page, "\n## {title}\n\n").expect("memory");
    row(page, headings);
    row(page, headings.map(|_| "---"));
}

fn row<const N: usize>(page: &mut String, cells: [&str; N]) {
    let cells = cells.map(|cell| cell.replace('\n', " ").replace('|', "\\|"));
    writeln!(page, "| {} |", cells.join(" | ")).expect("memory");
}

/// `0-5, 7`.
fn spans(levels: &[u8]) -> String {
    let runs = levels.chunk_by(|one, next| one + 1 == *next);
    let text = runs.map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        one => one[0].to_string(),
    });
    text.collect::<Vec<_>>().join(", ")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reference_of_http_is_what_the_levels_describe() {
    let mut reference = Reference::default();
    let directory = tempfile::tempdir().expect("a directory");
    for level in 0..=10 {
        let (_program, document) =
            described(level, &directory.path().join(level.to_string())).await;
        reference.learn(level, &document);
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/http.md");
    let now = reference.page();
    if std::env::var_os("TERRACE_BLESS").is_some() {
        std::fs::write(path, &now).expect("a page");
    }
    let written = std::fs::read_to_string(path).expect("a page");
    assert!(written == now, "run again with TERRACE_BLESS=1, which writes docs/http.md");
    for (name, meaning) in reference.asked.iter().chain(&reference.answered) {
        assert!(!meaning.is_empty(), "{name} has no meaning");
    }
}
