//! What a server says once it serves.

use std::net::SocketAddr;

use super::{LivePage, Running, Session};
use crate::cli::screen;
use crate::config::Mode;

impl Session {
    /// An address that can be typed into a browser.
    pub(super) fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        match address.ip().is_unspecified() {
            true => format!("{scheme}://127.0.0.1:{}", address.port()),
            false => format!("{scheme}://{address}"),
        }
    }

    /// Tells where the levels are, the live page first.
    pub(super) fn announce(&self, running: &[Running], page: Option<&LivePage>) {
        if let Some(page) = page {
            screen::line(&format!("Watch it: {}", page.url()));
            screen::line("");
        }
        screen::line(&format!(
            "Terrace {} with {} stores{}",
            env!("CARGO_PKG_VERSION"),
            self.mode.as_str(),
            match self.mode {
                Mode::Servers => String::new(),
                _ => format!(" in {}", self.config.stores.data_dir.display()),
            }
        ));
        screen::line("");
        let rows = running.iter().map(|one| {
            [format!("L{}", one.level.number), one.level.title.to_owned(), self.url(one.address)]
        });
        screen::table(["LEVEL", "WHAT", "URL"], rows);
        screen::line("");
        if let Some(plan) = &self.canary {
            screen::line(&plan.said());
            screen::line("");
        }
        for key in running.iter().filter_map(|one| one.keyed.1.as_ref()) {
            screen::line("The first API key, shown this once. It may do everything:");
            screen::line(&format!("  {}", key.reveal()));
            screen::line("");
        }
        let keeps_records =
            |keyed| running.iter().rev().find(move |one| one.has_records() && one.keyed.0 == keyed);
        let shown = keeps_records(false).or_else(|| keeps_records(true)).or(running.last());
        let Some(shown) = shown else { return };
        let key = if shown.keyed.0 { " -H \"X-API-Key: $KEY\"" } else { "" };
        let url = self.url(shown.address);
        let (write, body, read) = match shown.has_records() {
            true => ("/write", r#"{"key":"user:1","value":"Ada"}"#, "/read/user:1"),
            false => {
                let body = r#"{"key":"user:1","data":{"name":"Ada"}}"#;
                ("/write/document", body, "/read/document/user:1")
            }
        };
        screen::line("Try it:");
        screen::line(&format!("  curl {url}{write}{key} -H 'content-type: application/json' \\"));
        screen::line(&format!("    -d '{body}'"));
        screen::line(&format!("  curl {url}{read}{key}"));
        screen::line("");
        screen::line(&format!("{url}/docs shows all there is. Ctrl-C stops."));
    }
}
