//! The page at `/docs`, as a browser shows it: every operation of the description can be sent.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use super::{Program, Stores};

/// A page of a browser that is told what to do over a pair of pipes, as its DevTools do.
struct Browser {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// The conversation with the page, once there is one.
    session: Option<String>,
    number: u64,
    /// What the page's console said, and what its policy refused.
    complaints: Vec<String>,
}

impl Browser {
    async fn open(profile: &Path, url: &str) -> Self {
        // The browser reads from the third file and writes to the fourth.
        let script = "for program in chromium chromium-browser google-chrome; do \
                      command -v $program >/dev/null && exec $program \"$@\" 3<&0 4>&1 </dev/null >/dev/null; \
                      done";
        let mut command = Command::new("sh");
        command.args(["-c", script, "sh", "--headless", "--no-sandbox", "--disable-gpu"]);
        command.args(["--disable-quic", "--no-first-run", "--disable-background-networking"]);
        command.args(["--disable-sync", "--disable-component-update", "--remote-debugging-pipe"]);
        command.arg(format!("--user-data-dir={}", profile.display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.kill_on_drop(true).spawn().expect("a shell");
        let (to, from) =
            (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
        let (from, complaints) = (BufReader::new(from), Vec::new());
        let mut page = Self { _child: child, to, from, session: None, number: 0, complaints };
        let target = page.call("Target.createTarget", json!({"url": "about:blank"})).await;
        let asked = json!({"targetId": target["targetId"], "flatten": true});
        let session = page.call("Target.attachToTarget", asked).await;
        page.session = session["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page.enable", "Log.enable", "Runtime.enable"] {
            page.call(domain, json!({})).await;
        }
        page.call("Page.navigate", json!({"url": url})).await;
        page.run("new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))")
            .await;
        page
    }

    /// Asks for something and waits for its answer.
    async fn call(&mut self, method: &str, parameters: Value) -> Value {
        self.number += 1;
        let mut asked = json!({"id": self.number, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            asked["sessionId"] = json!(session);
        }
        self.to.write_all(format!("{asked}\0").as_bytes()).await.expect(NEEDED);
        loop {
            let mut said = Vec::new();
            self.from.read_until(0, &mut said).await.expect("bytes");
            said.pop();
            let said = serde_json::from_slice::<Value>(&said).expect(NEEDED);
            if said["id"] == self.number {
                assert!(said["error"].is_null(), "{method}: {said}");
                return said["result"].clone();
            }
            let complains = match said["method"].as_str() {
                Some("Runtime.exceptionThrown" | "Runtime.consoleAPICalled") => true,
                // That an answer is no success, the page shows.
                Some("Log.entryAdded") => {
                    let entry = &said["params"]["entry"];
                    entry["source"] != "network" && entry["level"] != "verbose"
                }
                _ => false,
            };
            if complains {
                self.complaints.push(said["params"].to_string());
            }
        }
    }

    /// Runs a script in the page, and waits for what it comes to.
    async fn run(&mut self, script: &str) -> Value {
        let asked = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let done = self.call("Runtime.evaluate", asked).await;
        assert!(done["exceptionDetails"].is_null(), "{done}");
        done["result"]["value"].clone()
    }

    async fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if key == "Enter" { "\r" } else { "" };
            let pressed = json!({"type": kind, "key": key, "code": key, "text": text});
            self.call("Input.dispatchKeyEvent", pressed).await;
        }
    }

    /// Gives the window this width; returns how wide the page became.
    async fn resize(&mut self, width: u32, picture: Option<&Path>) -> u64 {
        let size = json!({"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        if let Some(picture) = picture {
            let taken = self.call("Page.captureScreenshot", json!({})).await;
            let file = picture.join(format!("docs-{width}.base64"));
            std::fs::write(file, taken["data"].as_str().expect("a picture")).expect("a file");
        }
        self.run("document.documentElement.scrollWidth").await.as_u64().expect("a width")
    }
}

const NEEDED: &str = "a browser is needed to look at the page: apt-get install chromium, or run ./verify, which \
                      installs it";

/// Sends every form of the page, one after the other; the statuses that came, by the operation.
const SEND_ALL: &str = r#"(async () => {
  const statuses = {};
  for (const box of document.querySelectorAll("details")) {
    box.open = true;
    for (const button of box.querySelectorAll("button:not([type=button])")) {
      const answer = box.querySelector(".answer");
      const came = new Promise((done) => new MutationObserver(() => {
        if (answer.querySelector(".status")) done();
      }).observe(answer, { childList: true }));
      button.click();
      await came;
      statuses[box.id + " " + button.textContent] = answer.querySelector(".status").textContent;
    }
  }
  return statuses;
})()"#;

async fn sent(level: u8, key: Option<&str>) {
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Stores::Embedded(directory.path());
    let set = key.map(|key| ("API_KEY", key));
    let program = Program::serve_with(level, &stores, &[], set.as_slice()).await;
    let document: Value = program.get("/openapi.json").await.json().await.expect("JSON");
    let operations = document["paths"].as_object().expect("paths").values();
    let operations =
        operations.map(|item| item.as_object().expect("operations").len()).sum::<usize>();
    let profile = directory.path().join("browser");
    let mut page = Browser::open(&profile, &format!("{}/docs", program.url())).await;
    let hidden = page.run("document.getElementById('keys').hidden").await;
    assert_eq!(hidden, key.is_none());
    // Put before removed.
    page.run(r#"for (const box of document.querySelectorAll("details[id^=delete]")) box.remove()"#)
        .await;
    if let Some(key) = key {
        let refused = page.run(SEND_ALL).await;
        let refused = refused.as_object().expect("statuses");
        assert!(refused.values().any(|it| it.as_str().is_some_and(|it| it.starts_with("401"))));
        page.run(&format!("document.getElementById('key').value = {key:?}")).await;
    }
    let statuses = page.run(SEND_ALL).await;
    let statuses = statuses.as_object().expect("statuses");
    assert_eq!(statuses.len() + deletes(&document), operations, "{statuses:?}");
    for (operation, status) in statuses {
        let status = status.as_str().expect("a status");
        assert!(status.starts_with("20"), "{operation}: {status}");
    }
    let said = page.run(r#"document.querySelector("[id='get--v1-records--key-'] .answer, [id='get--health'] .answer").textContent"#).await;
    assert!(said.as_str().is_some_and(|said| said.contains("x-request-id")), "{said}");
    // A key that is typed is nowhere but in its field.
    if let Some(key) = key {
        let kept = page.run("JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie]) + document.body.innerText").await;
        assert!(kept.as_str().is_some_and(|kept| !kept.contains(key)), "{kept}");
    }
    let picture = std::env::var_os("TERRACE_PICTURES");
    for width in [1280, 420] {
        let wide = page.resize(width, picture.as_deref().map(Path::new)).await;
        assert!(wide <= u64::from(width), "{wide} at {width}");
    }
    assert_eq!(page.complaints, Vec::<String>::new());
    program.kill().await;
}

fn deletes(document: &Value) -> usize {
    let paths = document["paths"].as_object().expect("paths");
    paths.values().filter(|item| item["delete"].is_object()).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_sends_every_operation() {
    sent(5, None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_browser_sends_the_key_where_one_is_needed() {
    sent(10, Some("a key that is typed into the page")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_used_with_the_keyboard_alone() {
    let directory = tempfile::tempdir().expect("a directory");
    let program = Program::serve(8, &Stores::Embedded(directory.path())).await;
    let url = format!("{}/docs#post--write-document", program.url());
    let mut page = Browser::open(&directory.path().join("browser"), &url).await;
    page.run("document.querySelector('#post--write-document > summary').focus()").await;
    let mut seen = Vec::new();
    loop {
        page.press("Tab").await;
        let focus =
            page.run("document.activeElement.textContent || document.activeElement.tagName").await;
        seen.push(focus.as_str().unwrap_or_default().to_owned());
        if seen.last().is_some_and(|it| it == "Send") {
            break;
        }
        assert!(seen.len() < 20, "{seen:?}");
    }
    page.press("Enter").await;
    let status = "new Promise((done) => { const look = () => { const it = document.querySelector('#post--write-document .status'); it ? done(it.textContent) : requestAnimationFrame(look) }; look() })";
    let status = page.run(status).await;
    assert!(status.as_str().is_some_and(|it| it.starts_with("200")), "{status}");
    assert_eq!(page.complaints, Vec::<String>::new());
    program.kill().await;
}
