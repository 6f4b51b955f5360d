//! The live page, as a browser shows it and as others are refused it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use reqwest::header::{CONTENT_SECURITY_POLICY, HOST, ORIGIN};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::browser::Browser;
use super::{Program, Stores, free_port, terrace};

/// `terrace serve` with the page beside it.
struct Page {
    program: Program,
    /// Where the page is, without its token.
    url: String,
    token: String,
    client: reqwest::Client,
    directory: tempfile::TempDir,
}

impl Page {
    async fn of(level: u8) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let listen = format!("127.0.0.1:{}", free_port());
        let stores = Stores::Embedded(directory.path());
        let set = [("TERRACE_LIVE_LISTEN", listen.as_str()), ("ENABLE_METRICS", "true")];
        let program = Program::serve_with(level, &stores, &[], &set).await;
        // The first thing that is said.
        let said = program.said.first().expect("a line");
        let whole = said.strip_prefix("Watch it: ").expect("the page");
        let (url, token) = whole.split_once("/#").expect("a token");
        assert_eq!(url, format!("http://{listen}"));
        let (url, token) = (url.to_owned(), token.to_owned());
        Self { program, url, token, client: reqwest::Client::new(), directory }
    }

    fn post(&self, path: &str, body: &Value) -> reqwest::RequestBuilder {
        let sent = self.client.post(format!("{}{path}", self.url)).json(body);
        sent.header(ORIGIN, &self.url).header("terrace-live", &self.token)
    }

    async fn browser(&self) -> Browser {
        let url = format!("{}/#{}", self.url, self.token);
        Browser::open(&self.directory.path().join("browser"), &url).await
    }
}

/// Waits in the page until a script comes to true; what it came to last is told when it does not.
async fn until(page: &mut Browser, script: &str) {
    let wait = format!(
        "new Promise((done) => {{ const end = Date.now() + 60000; const look = () => {{ \
         const it = {script}; it || Date.now() > end ? done(Boolean(it)) : setTimeout(look, 50) }}; look() }})"
    );
    let came = page.run(&wait).await;
    let shown = page.run("document.body.innerText").await;
    assert_eq!(came, true, "{script}: {shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_shows_its_level_at_work() {
    let page = Page::of(5).await;
    let mut browser = page.browser().await;
    // Traffic begins by itself, and is judged.
    until(
        &mut browser,
        "/0 violations in [1-9]/.test(document.getElementById('oracle').textContent)",
    )
    .await;
    until(
        &mut browser,
        "/[1-9]/.test(document.querySelector('#rows td:nth-child(3)').textContent)",
    )
    .await;
    let row = browser.run("document.querySelector('#rows tr').innerText").await;
    let row = row.as_str().expect("a row");
    for wanted in ["L5 Multi-tier cache", "healthy", "never stale", "0 violations"] {
        assert!(row.contains(wanted), "{wanted} is not in {row}");
    }
    // The drawing, and the same as a table.
    let parts = "['near-cache', 'cache-aside', 'sqlite'].every((part) => document.querySelector('#drawing').textContent.includes(part) && document.querySelector('#stack-table tbody').textContent.includes(part))";
    assert_eq!(browser.run(parts).await, true);
    until(&mut browser, "/\\d %/.test(document.querySelector('#stack-table tbody').textContent)")
        .await;
    until(&mut browser, "document.querySelector('#time .heat[d*=M]')").await;
    until(&mut browser, "document.querySelectorAll('#time-table tbody tr').length === 10").await;
    assert_eq!(
        browser.run("document.querySelector('#marks').textContent.includes('20 requests/s')").await,
        true
    );
    // The traffic's own figures came later than all others: what was seen before is still there.
    let kept = "import('/model.js').then(({ model }) => model.looks.length === Math.min(120, model.frames))";
    assert_eq!(browser.run(kept).await, true);
    // No fault can be had of stores that are parts of the process.
    assert_eq!(browser.run("document.getElementById('faults').hidden").await, true);
    let picture = std::env::var_os("TERRACE_PICTURES");
    for width in [1280, 420] {
        let picture = picture.as_ref().map(|it| PathBuf::from(it).join(format!("live-{width}")));
        let wide = browser.resize(width, picture.as_deref()).await;
        assert!(wide <= u64::from(width), "{wide} at {width}");
    }
    assert_eq!(browser.complaints, Vec::<String>::new());
    page.program.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_used_with_the_keyboard_alone() {
    let page = Page::of(5).await;
    let mut browser = page.browser().await;
    let still = json!({"features": [{"name": "prefers-reduced-motion", "value": "reduce"}]});
    browser.call("Emulation.setEmulatedMedia", still).await;
    until(
        &mut browser,
        "document.querySelector('#rows button') && !document.getElementById('tools').hidden",
    )
    .await;
    until(&mut browser, "!document.querySelector('#traffic [name=stop]').disabled").await;
    let mut seen = Vec::new();
    let what = "(document.activeElement.textContent || document.activeElement.name || '').trim().slice(0, 40)";
    browser.run("document.activeElement.blur()").await;
    // From the first to the form of one request, through all that can be used.
    while seen.last().is_none_or(|it: &String| it != "path") {
        browser.press("Tab").await;
        seen.push(browser.run(what).await.as_str().unwrap_or_default().to_owned());
        assert!(seen.len() < 40, "{seen:?}");
    }
    for wanted in ["L5 Multi-tier cache", "The stack as a table", "Send", "Stop", "rate"] {
        assert!(seen.iter().any(|it| it.contains(wanted)), "{wanted} is not in {seen:?}");
    }
    browser.run("document.querySelector('#request [name=method]').value = 'PUT'; document.querySelector('#request [name=method]').dispatchEvent(new Event('change'))").await;
    browser.press("Enter").await;
    until(&mut browser, "document.querySelector('#request .status')").await;
    let answer = browser.run("document.querySelector('#request .answer').innerText").await;
    let answer = answer.as_str().expect("an answer");
    for wanted in ["20", "terrace-origin: primary", "where the answer came from", "Its way: "] {
        assert!(answer.contains(wanted), "{wanted} is not in {answer}");
    }
    // Nothing moves for who wants that; the scale is said all the same.
    until(&mut browser, "document.getElementById('scale').textContent.includes('do not move')")
        .await;
    assert_eq!(browser.run("document.querySelectorAll('#drawing .dot').length").await, 0);
    assert_eq!(browser.complaints, Vec::<String>::new());
    page.program.kill().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_the_page_is_refused() {
    let page = Page::of(0).await;
    let (client, url) = (&page.client, &page.url);
    let answer = client.get(format!("{url}/")).send().await.expect("an answer");
    let policy = answer.headers()[CONTENT_SECURITY_POLICY].to_str().expect("text").to_owned();
    assert!(policy.starts_with("default-src 'self';") && !policy.contains("unsafe"), "{policy}");
    assert!(!answer.text().await.expect("a page").contains(&page.token));
    for path in ["/", "/frames", "/violations", "/health"] {
        let elsewhere = client.get(format!("{url}{path}")).header(HOST, "evil.example:8020");
        assert_eq!(elsewhere.send().await.expect("an answer").status(), 403, "{path}");
        let other = client.get(format!("{url}{path}")).header(ORIGIN, "http://evil.example");
        assert_eq!(other.send().await.expect("an answer").status(), 403, "{path}");
    }
    let order = json!({"level": 0, "profile": "reads", "rate": 1});
    for path in ["/traffic", "/faults", "/request"] {
        let bare = client.post(format!("{url}{path}")).json(&order);
        assert_eq!(bare.send().await.expect("an answer").status(), 403, "{path}");
        let unproven = client.post(format!("{url}{path}")).json(&order).header(ORIGIN, url);
        assert_eq!(unproven.send().await.expect("an answer").status(), 403, "{path}");
    }
    let status = async |path: &str, body: Value| {
        page.post(path, &body).send().await.expect("an answer").status().as_u16()
    };
    assert_eq!(status("/traffic", order.clone()).await, 200);
    assert_eq!(status("/traffic", json!({"level": 0, "profile": "reads", "rate": 0})).await, 200);
    assert_eq!(status("/traffic", json!({"level": 3, "profile": "reads", "rate": 1})).await, 422);
    assert_eq!(status("/faults", json!({"server": 0, "seconds": 5})).await, 422);
    assert_eq!(status("/faults", json!({"server": 0, "seconds": 500})).await, 422);
    let by_hand = json!({"level": 0, "method": "GET", "path": "/v1/records/user:1"});
    let answer = page.post("/request", &by_hand).send().await.expect("an answer");
    let answer: Value = answer.json().await.expect("JSON");
    assert_eq!(answer["status"], 404, "{answer}");
    page.program.kill().await;
}

/// The stream of frames.
struct Stream {
    answer: reqwest::Response,
    text: String,
}

impl Stream {
    async fn of(page: &Page, after: Option<&str>) -> Self {
        let asked = page.client.get(format!("{}/frames", page.url));
        let asked = after.into_iter().fold(asked, |asked, id| asked.header("last-event-id", id));
        Self { answer: asked.send().await.expect("a stream"), text: String::new() }
    }

    /// The next frame, with its name and its kind; none when the stream has ended as it should.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            while let Some((event, rest)) = self.text.split_once("\n\n") {
                let (event, rest) = (event.to_owned(), rest.to_owned());
                self.text = rest;
                let Some((head, data)) = event.split_once("\ndata: ") else { continue };
                let (id, kind) = head.split_once("\nevent: ").expect("a kind");
                let id = id.strip_prefix("id: ").expect("a name").to_owned();
                return Some((id, kind.to_owned(), serde_json::from_str(data).expect("JSON")));
            }
            let piece = self.answer.chunk().await.expect("a piece, or an end in order")?;
            self.text.push_str(std::str::from_utf8(&piece).expect("text"));
        }
    }
}

/// Some figures of the part `observe` of the one level, in a frame that has everything.
fn observed<const N: usize>(whole: &Value, names: [&str; N]) -> [u64; N] {
    let mut at = 0;
    for part in whole["parts"][0].as_array().expect("parts") {
        let figures = part["figures"].as_array().expect("figures");
        if part["name"] == "observe" {
            return names.map(|name| {
                let place = figures.iter().position(|it| it[0] == name).expect("a figure");
                whole["values"][at + 1 + place].as_u64().expect("a number")
            });
        }
        at += 1 + figures.len();
    }
    panic!("there is no such part: {whole}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_figures_are_those_of_the_metrics() {
    let page = Page::of(2).await;
    for number in 0..7 {
        assert!(page.program.write(&format!("user:{number}"), "Ada").await);
    }
    let metrics = page.program.get("/metrics").await.text().await.expect("a body");
    let figure = |name: &str| {
        let line = metrics.lines().find(|line| line.starts_with(name)).expect("a figure");
        line.rsplit(' ').next().expect("a number").parse::<u64>().expect("a number")
    };
    let names = ["reads", "writes", "written_keys"];
    let wanted = names.map(|name| figure(&format!("terrace_observe_{name}_total ")));
    assert_eq!(wanted[1], 7);
    let mut stream = Stream::of(&page, None).await;
    let (_, kind, whole) = stream.next().await.expect("a frame");
    assert_eq!((kind.as_str(), observed(&whole, names)), ("whole", wanted));
    // Who comes back goes on where he was, and who comes from another process begins anew.
    let (id, kind, _) = stream.next().await.expect("a frame");
    assert_eq!(kind, "tick");
    let (next, kind, _) = Stream::of(&page, Some(&id)).await.next().await.expect("a frame");
    let number = |id: &str| id.rsplit('-').next().expect("a number").parse::<u64>().expect("it");
    assert_eq!((kind.as_str(), number(&next)), ("tick", number(&id) + 1));
    let (_, kind, _) = Stream::of(&page, Some("abc-1")).await.next().await.expect("a frame");
    assert_eq!(kind, "whole");
    // A stream is no request that a stop would have to wait for.
    let ended = page.program.terminate().await;
    while stream.next().await.is_some() {}
    assert!(ended.success());
}

/// `terrace up` with these settings, until it said the line before which all is said that matters here.
async fn up(directory: &Path, base: u16, set: &[(&str, &str)]) -> (Child, Vec<String>) {
    let mut command: Command = terrace(&["up", "0", "1", "--data-dir"]);
    command.arg(directory).args(["--port-base", &base.to_string()]).envs(set.iter().copied());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut said = Vec::new();
    while let Some(line) = lines.next_line().await.expect("text") {
        let last = line.contains("Ctrl-C stops");
        said.push(line);
        if last {
            break;
        }
    }
    (child, said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_that_is_in_use_is_no_reason_not_to_serve_levels() {
    let directory = tempfile::tempdir().expect("a directory");
    // The page's port is 20 above the base, and taken.
    let (base, taken) = loop {
        let port = free_port();
        let near = |above| std::net::TcpListener::bind(("127.0.0.1", port + above));
        if let (Ok(_), Ok(_), Ok(taken)) = (near(0), near(1), near(20)) {
            break (port, taken);
        }
    };
    let (mut child, said) = up(directory.path(), base, &[]).await;
    let said = said.join("\n");
    assert!(said.contains("Ctrl-C") && !said.contains("Watch it"), "{said}");
    child.start_kill().expect("it is killed");
    let logged = child.wait_with_output().await.expect("it ended").stderr;
    let logged = String::from_utf8_lossy(&logged);
    assert!(logged.contains("there is no live page") && logged.contains("is in use"), "{logged}");
    let listen = format!("127.0.0.1:{}", base + 20);
    // Where somebody wants the page, he hears that it cannot be.
    let other = tempfile::tempdir().expect("a directory");
    let (mut child, said) = up(other.path(), base, &[("TERRACE_LIVE_LISTEN", &listen)]).await;
    assert!(!child.wait().await.expect("a status").success(), "{said:?}");
    drop(taken);
    let third = tempfile::tempdir().expect("a directory");
    let (mut child, said) = up(third.path(), base, &[]).await;
    assert!(said[0].starts_with(&format!("Watch it: http://{listen}/#")), "{said:?}");
    child.kill().await.expect("it is killed");
}
