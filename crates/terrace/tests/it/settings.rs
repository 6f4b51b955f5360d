//! The reference of the settings and the settings are the same.

use std::collections::BTreeMap;

use terrace::config::sources::DOCUMENTED_NAMES;
use terrace::config::{Overrides, load};

#[test]
fn every_setting_stands_in_the_reference_with_its_default() {
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/settings.md");
    let page = std::fs::read_to_string(page).expect("the reference");
    let rows = page.lines().filter(|line| line.starts_with("| `"));
    let documented: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().replace('`', "")).collect();
            assert!(!cells[4].is_empty(), "{row}: who changes it?");
            (cells[1].clone(), (cells[2].clone(), cells[3].clone()))
        })
        .collect();
    let loaded = load(&Overrides::default(), std::iter::empty()).expect("the defaults");
    let known: Vec<_> = loaded.sources.keys().collect();
    assert_eq!(documented.keys().collect::<Vec<_>>(), known);
    // 84: what a cache in front may keep, and where one is, cannot be one setting; nor can where a collector
    // is, and how much it may be sent. Whether a page that can send requests and stop servers is served at
    // all is for the owner of the machine to say.
    assert!(known.len() <= 84, "a setting more is a question more");
    for (name, (value, _)) in &loaded.sources {
        let shown = value.trim_matches(['[', ']']);
        assert_eq!(documented[name].0, shown, "{name}");
    }
    for (name, setting) in DOCUMENTED_NAMES {
        assert!(documented[setting].1.split(", ").any(|also| also == name), "{name}");
    }
}
