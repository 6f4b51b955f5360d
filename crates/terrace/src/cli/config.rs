//! `terrace config`: the effective settings and where each came from.

use serde_json::json;

use super::{Failure, screen};
use crate::config::Loaded;

/// Prints every setting, without passwords.
pub(super) fn config(loaded: &Loaded, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let all: serde_json::Map<_, _> = loaded
            .sources
            .iter()
            .map(|(path, (value, source))| (path.clone(), json!({"value": value, "from": source})))
            .collect();
        screen::line(&format!("{:#}", serde_json::Value::Object(all)));
        return Ok(());
    }
    let rows = loaded.sources.iter().map(|(path, (value, source))| {
        [
            path.clone(),
            if value.is_empty() { "(none)".into() } else { value.clone() },
            source.clone(),
        ]
    });
    screen::table(["SETTING", "VALUE", "FROM"], rows);
    screen::line("");
    screen::line("Set one in terrace.toml ([section] key = value) or by TERRACE_<SECTION>_<KEY>.");
    Ok(())
}
