//! The page at `/docs`, as a browser shows it: every operation of the description can be sent.

use std::path::PathBuf;

use serde_json::Value;

use super::browser::Browser;
use super::{Program, Stores};

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
        let picture = picture.as_ref().map(|it| PathBuf::from(it).join(format!("docs-{width}")));
        let wide = page.resize(width, picture.as_deref()).await;
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
