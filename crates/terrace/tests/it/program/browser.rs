//! A browser that tests tell what to do.

use std::path::Path;
use std::process::Stdio;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

/// A page of a browser that is told what to do over a pair of pipes, as its DevTools do.
pub(super) struct Browser {
    _child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    /// The conversation with the page, once there is one.
    session: Option<String>,
    number: u64,
    /// What the page's console said, and what its policy refused.
    pub(super) complaints: Vec<String>,
}

impl Browser {
    pub(super) async fn open(profile: &Path, url: &str) -> Self {
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
    pub(super) async fn call(&mut self, method: &str, parameters: Value) -> Value {
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
    pub(super) async fn run(&mut self, script: &str) -> Value {
        let asked = json!({"expression": script, "awaitPromise": true, "returnByValue": true});
        let done = self.call("Runtime.evaluate", asked).await;
        assert!(done["exceptionDetails"].is_null(), "{done}");
        done["result"]["value"].clone()
    }

    pub(super) async fn press(&mut self, key: &str) {
        for kind in ["keyDown", "keyUp"] {
            let text = if key == "Enter" { "\r" } else { "" };
            let pressed = json!({"type": kind, "key": key, "code": key, "text": text});
            self.call("Input.dispatchKeyEvent", pressed).await;
        }
    }

    /// Gives the window this width; returns how wide the page became. A picture of it is for people to look at.
    pub(super) async fn resize(&mut self, width: u32, picture: Option<&Path>) -> u64 {
        let size = json!({"width": width, "height": 1200, "deviceScaleFactor": 1, "mobile": false});
        self.call("Emulation.setDeviceMetricsOverride", size).await;
        if let Some(picture) = picture {
            let taken = self.call("Page.captureScreenshot", json!({})).await;
            std::fs::write(
                picture.with_extension("base64"),
                taken["data"].as_str().expect("a picture"),
            )
            .expect("a file");
        }
        self.run("document.documentElement.scrollWidth").await.as_u64().expect("a width")
    }
}

const NEEDED: &str = "a browser is needed to look at the page: apt-get install chromium, or run ./verify, which \
                      installs it";
