//! Log lines on standard error: text for people, JSON for programs.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use super::Failure;
use crate::config::LogConfig;

/// Starts logging. Values, secrets and passwords are never among the fields.
pub(super) fn start(config: &LogConfig) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&config.level).map_err(|error| {
        Failure::usage(format!("log.level is not a filter: {error}; try info or debug"))
    })?;
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none());
    let started = match config.format.as_str() {
        "json" => lines.json().try_init(),
        _ => lines.try_init(),
    };
    started.map_err(|error| Failure::failed(format!("logging cannot start: {error}")))
}
