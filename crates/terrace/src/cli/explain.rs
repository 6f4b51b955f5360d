//! `terrace explain`: what a level is, promises and costs.

use serde_json::json;

use super::{Failure, screen};
use crate::levels::Level;

/// Prints the level's page.
pub(super) fn explain(level: &Level, as_json: bool) -> Result<(), Failure> {
    if as_json {
        let page = json!({
            "level": level.number,
            "name": level.name,
            "title": level.title,
            "guarantee": level.guarantee,
            "costs": level.costs,
            "when": level.when,
            "stacks": level.stacks.iter().map(|(mode, stack)| json!({"stores": mode, "stack": stack}))
                .collect::<Vec<_>>(),
        });
        screen::line(&format!("{page:#}"));
        return Ok(());
    }
    screen::line(&screen::bold(&format!("Level {}: {}", level.number, level.title)));
    screen::line("");
    screen::line(level.picture);
    screen::line("");
    let facts =
        [("Guarantee", level.guarantee), ("Costs", level.costs), ("Climb when", level.when)];
    let stacks =
        level.stacks.iter().map(|(mode, stack)| [format!("Stack, {mode}"), (*stack).into()]);
    screen::facts(facts.into_iter().map(|(name, text)| [name.into(), text.into()]).chain(stacks));
    screen::line("");
    screen::line(&format!("Run it: terrace serve {}   Its settings: terrace config", level.number));
    Ok(())
}
