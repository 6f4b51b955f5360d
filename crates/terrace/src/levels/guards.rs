//! What stands before the endpoints of a level, outermost first.

use std::sync::Arc;

use super::Level;
use crate::config::Config;
use crate::http::{Guards, Middleware};

/// The guards that a level has by itself or by the settings.
pub fn guards(_level: &Level, _config: &Config) -> Guards {
    let steps: Vec<Arc<dyn Middleware>> = Vec::new();
    Guards::new(steps)
}
