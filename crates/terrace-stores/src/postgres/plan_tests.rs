//! The plan against the reference of the contract.

use terrace_core::{
    Key, MemoryStore, Place, Precondition, Runtime, Store, StoreExt, Value, WriteOptions,
};

use super::*;

fn write(seed: u64) -> Write {
    let key = Key::new(format!("k{}", seed % 3)).unwrap();
    let place = Place { sequence: Sequence::new((seed >> 20) % 9), settled: Sequence::NONE };
    let precondition = match (seed >> 8) % 5 {
        3 => Precondition::After(place),
        0 => Precondition::Absent,
        1 => Precondition::Version(Version::new((seed >> 16) % 12)),
        _ => Precondition::None,
    };
    let write = match (seed >> 12) % 3 {
        0 => Write::delete(key),
        _ => Write::put(key, Value::new(format!("v{seed}")).unwrap()),
    };
    write.when(precondition)
}

/// How many versions a batch drew: a placed delete that found nothing has one, too.
fn drawn(batch: &[Write], receipts: &[terrace_core::Receipt]) -> i64 {
    let placed = |write: &Write| matches!(write.precondition, Precondition::After(_));
    let drew = batch.iter().zip(receipts).filter(|(write, receipt)| {
        receipt.outcome.is_applied() || (receipt.outcome == Outcome::Absent && placed(write))
    });
    drew.count() as i64
}

/// Random batches over few keys: the same outcomes, records and order of versions as in memory.
#[tokio::test]
async fn a_plan_does_what_the_memory_store_does() {
    let runtime = Runtime::seeded(11);
    for round in 0..500 {
        let memory = MemoryStore::new(runtime.clone());
        let mut rows = BTreeMap::<String, (Current, String)>::new();
        let mut latest = 0;
        for _ in 0..4 {
            let size = 1 + runtime.random() % 6;
            let batch = (0..size).map(|_| write(runtime.random())).collect::<Vec<_>>();
            let receipts = memory.write(batch.clone(), &WriteOptions::default()).await.unwrap();
            let locked = rows.iter().map(|(key, (row, _))| (key.as_str(), *row)).collect();
            let versions = (latest + 1..).take(batch.len()).collect::<Vec<_>>();
            let plan = plan(&batch, &locked, &versions, Sequence::NONE, None);
            let expected = receipts.iter().map(|it| (it.outcome, it.version)).collect::<Vec<_>>();
            assert_eq!(plan.answers, expected, "round {round}");
            latest += drawn(&batch, &receipts);
            for changed in [&plan.insert, &plan.update] {
                assert!(changed.keys.is_sorted());
                for (index, key) in changed.keys.iter().enumerate() {
                    let version = super::super::read::version(changed.versions[index]);
                    let applied = Sequence::new(changed.applied[index].cast_unsigned());
                    let row = Current { version, live: !changed.deleted[index], applied };
                    rows.insert((*key).to_owned(), (row, changed.values[index].to_owned()));
                }
            }
        }
        for (key, (row, value)) in rows {
            let record = memory.get(&Key::new(key).unwrap()).await.unwrap();
            assert_eq!(record.as_ref().map(|it| it.value.as_str()), row.live.then_some(&*value));
            assert!(record.is_none_or(|record| record.version == row.version));
        }
    }
}

#[test]
fn puts_are_sorted_and_only_the_last_of_a_key_is_written() {
    let put =
        |key: &str, value: &str| Write::put(Key::new(key).unwrap(), Value::new(value).unwrap());
    let batch = [put("b", "1"), put("a", "2"), put("b", "3"), put("b", "4")];
    let puts = Puts::of(&batch).expect("puts only");
    assert_eq!((puts.keys, puts.values), (vec!["a", "b"], vec!["2", "4"]));
    assert_eq!(puts.superseded, 2);
    let places = puts.places.iter().map(|it| (it.row, it.first, it.last)).collect::<Vec<_>>();
    assert_eq!(places, [(1, true, false), (0, true, true), (1, false, false), (1, false, true)]);
    assert!(Puts::of(&[Write::delete(Key::new("a").unwrap())]).is_none());
}

#[test]
fn placed_writes_of_distinct_keys_are_one_statement() {
    let at = |key: &str, sequence| {
        let place = Place { sequence: Sequence::new(sequence), settled: Sequence::NONE };
        Write::put(Key::new(key).unwrap(), Value::new(key).unwrap())
            .when(Precondition::After(place))
    };
    let gone = Write { change: Change::Delete, ..at("a", 3) };
    let batch = [at("b", 2), gone];
    let placed = Placed::of(&batch).expect("placed only");
    assert_eq!((placed.keys, placed.values), (vec!["a", "b"], vec!["", "b"]));
    assert_eq!((placed.sequences, placed.deleted), (vec![3, 2], vec![true, false]));
    assert_eq!(placed.writes, [1, 0]);
    assert!(Placed::of(&[at("a", 1), at("a", 2)]).is_none());
    assert!(Placed::of(&[Write::delete(Key::new("a").unwrap())]).is_none());
}

/// A person may have set a version that is not drawn yet.
#[test]
fn versions_of_a_key_rise_whatever_its_row_has() {
    let write = || Write::put(Key::new("a").unwrap(), Value::new("1").unwrap());
    for live in [true, false] {
        let rows = HashMap::from([(
            "a",
            Current { version: Version::new(100), live, applied: Sequence::NONE },
        )]);
        let batch = [write(), write()];
        let plan = plan(&batch, &rows, &[6, 7], Sequence::NONE, None);
        let versions = plan.answers.iter().map(|answer| answer.1.get()).collect::<Vec<_>>();
        assert_eq!((versions, plan.update.versions), (vec![101, 102], vec![102]));
    }
}
