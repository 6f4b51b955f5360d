//! The properties that every [`Cache`] keeps.
//!
//! Used like [`store_contract!`](crate::store_contract), with a factory of
//! [`CacheFixture`](crate::testkit::CacheFixture)s.

use std::sync::Arc;
use std::time::Duration;

use crate::testkit::{key, value};
use crate::{
    Budget, Cache, Entry, Generation, Key, Lease, Lookup, Offer, Position, Proof, Record,
    Timestamp, Value, Version,
};

/// Makes one test of each property of the [`Cache`] contract, in a module `cache_contract`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`CacheFixture`](crate::testkit::CacheFixture).
#[macro_export]
macro_rules! cache_contract {
    ($factory:path) => {
        mod cache_contract {
            use super::*;
            $crate::each_property! { $factory, cache_contract:
                what_is_filled_is_hit,
                a_key_known_to_be_missing_is_a_hit,
                a_late_fill_cannot_undo_an_invalidation,
                an_older_fill_cannot_undo_a_newer_one,
                a_fill_of_the_written_version_is_taken,
                a_write_of_unknown_outcome_keeps_fills_out,
                an_invalidation_of_the_past_changes_nothing,
                a_clear_forgets_entries_and_leases,
                many_keys_are_one_call,
                what_does_not_fit_is_no_hit,
            }
        }
    };
}

/// An entry as a database load would make it; `None` for a missing key.
pub fn entry(name: &Key, text: Option<&str>, version: u64) -> Entry {
    let at = Timestamp::from_microsecond(1_700_000_000_123_456).expect("a time");
    let record = text.map(|text| Record {
        key: name.clone(),
        value: value(text),
        version: Version::new(version),
        created_at: at,
        updated_at: at,
    });
    let proof = Proof {
        history: "db.1".into(),
        generation: Generation::new(3),
        through: Position::new(version + 1),
        shown: Position::new(version),
    };
    Entry { record, version: Version::new(version), proof, age: Duration::ZERO }
}

async fn get(cache: &dyn Cache, key: &Key) -> Lookup {
    let mut answers = cache.get(std::slice::from_ref(key), Budget::default()).await.expect("a get");
    assert_eq!(answers.len(), 1);
    answers.remove(0)
}

async fn lease(cache: &dyn Cache, key: &Key) -> Lease {
    match get(cache, key).await {
        Lookup::Miss(lease) | Lookup::Written { lease, .. } => lease,
        Lookup::Hit(entry) => panic!("a miss was expected, not {entry:?}"),
    }
}

async fn fill(cache: &dyn Cache, lease: Lease, key: &Key, text: Option<&str>, version: u64) {
    let offer = Offer { key: key.clone(), lease, entry: entry(key, text, version) };
    cache.fill(vec![offer]).await.expect("a fill");
}

async fn invalidate(cache: &dyn Cache, key: &Key, version: u64) {
    cache.invalidate(&[(key.clone(), Version::new(version))]).await.expect("an invalidation");
}

async fn hit(cache: &dyn Cache, key: &Key) -> Option<(Option<String>, u64)> {
    match get(cache, key).await {
        Lookup::Miss(_) | Lookup::Written { .. } => None,
        Lookup::Hit(entry) => {
            let text = entry.record.map(|record| record.value.as_str().to_owned());
            Some((text, entry.version.get()))
        }
    }
}

fn is(text: &str, version: u64) -> Option<(Option<String>, u64)> {
    Some((Some(text.to_owned()), version))
}

/// An entry comes back whole: record, times, version, proof.
pub async fn what_is_filled_is_hit(cache: Arc<dyn Cache>) {
    let big = "x".repeat(100_000);
    for (name, text) in [("a", "one"), ("empty", ""), ("鍵 %/\n", "ü\"\\"), ("big", &big)] {
        let key = key(name);
        let lease = lease(&*cache, &key).await;
        fill(&*cache, lease, &key, Some(text), 7).await;
        let Lookup::Hit(found) = get(&*cache, &key).await else { panic!("{name} is a hit") };
        let wanted = entry(&key, Some(text), 7);
        assert_eq!((&found.record, found.version), (&wanted.record, wanted.version));
        assert_eq!(found.proof, wanted.proof);
        assert!(found.age < Duration::from_secs(60));
    }
}

/// "There is none" is knowledge, too.
pub async fn a_key_known_to_be_missing_is_a_hit(cache: Arc<dyn Cache>) {
    let key = key("missing");
    let first = lease(&*cache, &key).await;
    fill(&*cache, first, &key, None, 0).await;
    assert_eq!(hit(&*cache, &key).await, Some((None, 0)));
    // The key is created: the knowledge is void, and a late repeat of it is refused.
    invalidate(&*cache, &key, 3).await;
    fill(&*cache, first, &key, None, 0).await;
    assert_eq!(hit(&*cache, &key).await, None);
}

/// The race: loaded before the write, offered after its invalidation.
pub async fn a_late_fill_cannot_undo_an_invalidation(cache: Arc<dyn Cache>) {
    let key = key("race");
    let reader = lease(&*cache, &key).await;
    invalidate(&*cache, &key, 2).await;
    fill(&*cache, reader, &key, Some("old"), 1).await;
    assert_eq!(hit(&*cache, &key).await, None);
    // The same with an entry in between.
    let other = lease(&*cache, &key).await;
    fill(&*cache, other, &key, Some("new"), 2).await;
    fill(&*cache, reader, &key, Some("old"), 1).await;
    assert_eq!(hit(&*cache, &key).await, is("new", 2));
}

/// Two loads under good leases: the newer stays, whichever comes last.
pub async fn an_older_fill_cannot_undo_a_newer_one(cache: Arc<dyn Cache>) {
    let key = key("two");
    let (slow, fast) = (lease(&*cache, &key).await, lease(&*cache, &key).await);
    fill(&*cache, fast, &key, Some("new"), 9).await;
    fill(&*cache, slow, &key, Some("old"), 8).await;
    fill(&*cache, slow, &key, None, 0).await;
    assert_eq!(hit(&*cache, &key).await, is("new", 9));
}

/// The first load after a write fills again.
pub async fn a_fill_of_the_written_version_is_taken(cache: Arc<dyn Cache>) {
    let key = key("fresh");
    let first = lease(&*cache, &key).await;
    fill(&*cache, first, &key, Some("one"), 1).await;
    invalidate(&*cache, &key, 2).await;
    let second = lease(&*cache, &key).await;
    fill(&*cache, second, &key, Some("two"), 2).await;
    assert_eq!(hit(&*cache, &key).await, is("two", 2));
    // A deletion's version, too.
    invalidate(&*cache, &key, 3).await;
    let third = lease(&*cache, &key).await;
    fill(&*cache, third, &key, None, 3).await;
    assert_eq!(hit(&*cache, &key).await, Some((None, 3)));
}

/// While nobody knows whether a write happened, the key is not cached.
pub async fn a_write_of_unknown_outcome_keeps_fills_out(cache: Arc<dyn Cache>) {
    let key = key("doubt");
    let before = lease(&*cache, &key).await;
    fill(&*cache, before, &key, Some("one"), 1).await;
    cache.invalidate(&[(key.clone(), Version::UNKNOWN)]).await.expect("an invalidation");
    let after = lease(&*cache, &key).await;
    fill(&*cache, after, &key, Some("two"), u64::MAX - 1).await;
    assert_eq!(hit(&*cache, &key).await, None);
    // A later write's invalidation does not end the doubt.
    invalidate(&*cache, &key, 5).await;
    let later = lease(&*cache, &key).await;
    fill(&*cache, later, &key, Some("two"), 5).await;
    assert_eq!(hit(&*cache, &key).await, None);
}

/// A repeated or reordered invalidation does not lower what a fill must be.
pub async fn an_invalidation_of_the_past_changes_nothing(cache: Arc<dyn Cache>) {
    let key = key("repeat");
    invalidate(&*cache, &key, 5).await;
    invalidate(&*cache, &key, 4).await;
    let lease = lease(&*cache, &key).await;
    fill(&*cache, lease, &key, Some("four"), 4).await;
    assert_eq!(hit(&*cache, &key).await, None);
    fill(&*cache, lease, &key, Some("five"), 5).await;
    assert_eq!(hit(&*cache, &key).await, is("five", 5));
}

/// After a clear nothing is hit, and what was loaded before it is refused.
pub async fn a_clear_forgets_entries_and_leases(cache: Arc<dyn Cache>) {
    let (there, loading) = (key("there"), key("loading"));
    let first = lease(&*cache, &there).await;
    fill(&*cache, first, &there, Some("one"), 1).await;
    let before = lease(&*cache, &loading).await;
    cache.clear().await.expect("a clear");
    assert_eq!(hit(&*cache, &there).await, None);
    fill(&*cache, before, &loading, Some("old"), 1).await;
    assert_eq!(hit(&*cache, &loading).await, None);
    let after = lease(&*cache, &loading).await;
    fill(&*cache, after, &loading, Some("new"), 2).await;
    assert_eq!(hit(&*cache, &loading).await, is("new", 2));
}

/// Answers stand in the order of the keys, and many keys are filled and emptied at once.
pub async fn many_keys_are_one_call(cache: Arc<dyn Cache>) {
    let keys: Vec<_> = (0..300).map(|number| key(format!("many{number}"))).collect();
    let answers = cache.get(&keys, Budget::default()).await.expect("a get");
    let offers = keys
        .iter()
        .zip(answers)
        .map(|(key, answer)| match answer {
            Lookup::Miss(lease) | Lookup::Written { lease, .. } => {
                Offer { key: key.clone(), lease, entry: entry(key, Some(key.as_str()), 1) }
            }
            Lookup::Hit(entry) => panic!("a miss was expected, not {entry:?}"),
        })
        .collect();
    cache.fill(offers).await.expect("a fill");
    let written: Vec<_> =
        keys.iter().skip(1).step_by(2).map(|key| (key.clone(), Version::new(2))).collect();
    cache.invalidate(&written).await.expect("an invalidation");
    for (number, (key, answer)) in
        keys.iter().zip(cache.get(&keys, Budget::default()).await.expect("a get")).enumerate()
    {
        match answer {
            Lookup::Hit(entry) if number % 2 == 0 => {
                assert_eq!(entry.record.expect("a record").value.as_str(), key.as_str());
            }
            Lookup::Miss(_) | Lookup::Written { .. } if number % 2 == 1 => {}
            other => panic!("{key}: {other:?}"),
        }
    }
    assert_eq!(cache.get(&[], Budget::default()).await.expect("a get"), []);
}

/// Of entries that are more than the budget together some are hit, and the others can be loaded.
pub async fn what_does_not_fit_is_no_hit(cache: Arc<dyn Cache>) {
    let large = "x".repeat(Value::MAX_BYTES);
    let keys: Vec<_> = (0..5).map(|number| key(format!("large{number}"))).collect();
    for key in &keys {
        let lease = lease(&*cache, key).await;
        fill(&*cache, lease, key, Some(&large), 1).await;
    }
    let hits = async |budget| {
        let answers = cache.get(&keys, budget).await.expect("a get");
        assert_eq!(answers.len(), 5);
        answers.iter().filter(|answer| matches!(answer, Lookup::Hit(_))).count()
    };
    assert_eq!(hits(Budget::default()).await, 5);
    assert!(hits(Budget::bytes(3 * Value::MAX_BYTES)).await <= 3);
    assert_eq!(hits(Budget::bytes(6 * Value::MAX_BYTES)).await, 5);
}
