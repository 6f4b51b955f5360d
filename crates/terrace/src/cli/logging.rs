//! Log lines on standard error: text for people, JSON for programs.

use std::io::IsTerminal;

use tracing::{Level, Metadata};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::Failure;
use crate::config::Loaded;

/// Starts logging. Values, secrets and passwords are never among the fields.
pub(super) fn start(loaded: &Loaded) -> Result<(), Failure> {
    let config = &loaded.config.log;
    let filter = EnvFilter::try_new(&config.level).map_err(|error| {
        Failure::usage(format!("log.level is not a filter: {error}; try info or debug"))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // A line that cannot be written is lost; to tell so would be to write to the same place, and panic.
        .log_internal_errors(false)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let started = match config.format.as_str() {
        "json" => lines.json().finish().with(filter_fn(is_fit)).try_init(),
        _ => lines.finish().with(filter_fn(is_fit)).try_init(),
    };
    started.map_err(|error| Failure::failed(format!("logging cannot start: {error}")))?;
    if !loaded.ignored.is_empty() {
        let variables = loaded.ignored.join(" ");
        tracing::info!(variables, "links to services of Kubernetes are ignored");
    }
    Ok(())
}

/// Below info only Terrace itself speaks, whatever `log.level` says: drivers write what they send
/// into their debug lines, and the parameters of statements are keys and values.
fn is_fit(metadata: &Metadata<'_>) -> bool {
    // Greater is more verbose.
    *metadata.level() <= Level::INFO || metadata.target().starts_with("terrace")
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn no_filter_makes_a_driver_tell_what_it_sends() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter("trace,tokio_postgres::query=trace")
            .with_writer(move || writer.clone())
            .finish()
            .with(filter_fn(is_fit));
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!(target: "tokio_postgres::query", "with parameters: secret");
            tracing::trace!(target: "hyper::proto", "secret");
            tracing::info!(target: "tokio_postgres::connection", "a notice");
            tracing::debug!(target: "terrace_stores::postgres", "our own");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("secret"), "{text}");
        assert!(text.contains("a notice") && text.contains("our own"), "{text}");
    }
}
