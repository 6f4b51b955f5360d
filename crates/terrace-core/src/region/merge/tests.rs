//! Laws of merging, and a model that counts what is lost.

use proptest::prelude::*;

use super::*;
use crate::Timestamp;

const REGIONS: usize = 3;

/// Something that happens to one key.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// A region writes, with a clock that is so many milliseconds ahead.
    Write { at: usize, clock: i64, deletes: bool },
    /// A region hears the next change of another one.
    Hear { at: usize, of: usize },
    /// A region merges all that another one knows, as a first copy does.
    Copy { at: usize, of: usize },
    /// A region hears the changes of another one again from the beginning.
    Rewind { at: usize, of: usize },
}

#[derive(Clone, Copy, Debug)]
struct Update {
    version: Version,
    deleted: bool,
    replaced: Version,
}

#[derive(Clone, Debug, Default)]
struct Regions {
    states: [KeyState; REGIONS],
    logs: [Vec<Update>; REGIONS],
    heard: [[usize; REGIONS]; REGIONS],
}

impl Regions {
    fn happens(&mut self, event: Event) {
        match event {
            Event::Write { at, clock, deletes } => {
                let state = &mut self.states[at];
                let region = RegionId::new(u8::try_from(at + 1).unwrap()).unwrap();
                let now = Timestamp::from_millisecond(Version::SINCE + clock).unwrap();
                let version = state.version.next_in(region, now);
                let update = Update { version, deleted: deletes, replaced: state.version };
                *state = state.after(version, deletes, update.replaced);
                self.logs[at].push(update);
            }
            Event::Hear { at, of } => {
                if at != of
                    && let Some(update) = self.logs[of].get(self.heard[at][of])
                {
                    self.heard[at][of] += 1;
                    let state = &mut self.states[at];
                    *state = state.after(update.version, update.deleted, update.replaced);
                }
            }
            Event::Copy { at, of } => self.states[at] = self.states[at].merge(&self.states[of]),
            Event::Rewind { at, of } => self.heard[at][of] = 0,
        }
    }

    fn hear_all(&mut self) {
        for at in 0..REGIONS {
            for of in 0..REGIONS {
                for _ in 0..self.logs[of].len() {
                    self.happens(Event::Hear { at, of });
                }
            }
        }
    }

    /// What all updates come to, whatever their order: the newest, and what none has replaced.
    fn model(&self) -> (Version, BTreeSet<Version>) {
        let all = || self.logs.iter().flatten();
        let newest = all().map(|update| update.version).max().unwrap_or_default();
        let replaced = all().map(|update| update.replaced).collect::<BTreeSet<_>>();
        let mut lost = all().map(|update| update.version).collect::<BTreeSet<_>>();
        lost.retain(|version| *version != newest && !replaced.contains(version));
        (newest, lost)
    }
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let region = 0..REGIONS;
    let event = prop_oneof![
        4 => (region.clone(), 0_i64..50, any::<bool>())
            .prop_map(|(at, clock, deletes)| Event::Write { at, clock, deletes }),
        8 => (region.clone(), region.clone()).prop_map(|(at, of)| Event::Hear { at, of }),
        1 => (region.clone(), region.clone()).prop_map(|(at, of)| Event::Copy { at, of }),
        1 => (region.clone(), region).prop_map(|(at, of)| Event::Rewind { at, of }),
    ];
    proptest::collection::vec(event, 0..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn regions_that_have_heard_all_list_exactly_what_was_lost(events in events()) {
        let mut regions = Regions::default();
        events.into_iter().for_each(|event| regions.happens(event));
        regions.hear_all();
        let (newest, lost) = regions.model();
        for state in &regions.states {
            prop_assert_eq!((state.version, &state.lost), (newest, &lost));
            prop_assert_eq!(&state.seen, &regions.states[0].seen);
            prop_assert!(state.awaited.is_empty(), "all has arrived: {:?}", state);
        }
    }

    #[test]
    fn merging_is_commutative_associative_and_idempotent(events in events()) {
        let mut regions = Regions::default();
        let mut states = vec![KeyState::default()];
        for event in events {
            regions.happens(event);
            states.extend(regions.states.iter().cloned());
        }
        let some = states.len() / 7 + 1;
        for (a, b) in states.iter().step_by(some).zip(states.iter().rev().step_by(some)) {
            prop_assert_eq!(&a.merge(a), a);
            prop_assert_eq!(a.merge(b), b.merge(a));
            prop_assert_eq!(a.merge(b).merge(b), a.merge(b));
            for c in states.iter().step_by(some) {
                prop_assert_eq!(a.merge(b).merge(c), a.merge(&b.merge(c)));
            }
        }
    }
}

fn version(tick: u64, region: u64) -> Version {
    Version::new(tick * Version::STEP + region)
}

#[test]
fn what_was_replaced_before_it_arrives_is_not_lost() {
    let (first, second) = (version(1, 1), version(2, 2));
    let early = KeyState::default().after(second, false, first);
    assert_eq!(early.awaited, BTreeSet::from([first]));
    let both = early.after(first, false, Version::NONE);
    assert_eq!((both.version, both.lost.len(), both.awaited.len()), (second, 0, 0));
}

#[test]
fn a_loss_that_its_author_has_overwritten_is_none() {
    let (mine, theirs, again) = (version(1, 1), version(2, 2), version(3, 1));
    let state = KeyState::default().after(mine, false, Version::NONE);
    let lost = state.after(theirs, false, Version::NONE);
    assert_eq!(lost.lost, BTreeSet::from([mine]));
    let state = lost.after(again, false, mine);
    assert_eq!((state.version, &state.lost), (again, &BTreeSet::from([theirs])));
}

#[test]
fn a_deletion_that_was_collected_where_the_key_is_made_anew_is_not_lost() {
    let (deletion, anew, horizon) = (version(5, 1), version(9, 2), version(7, 0));
    let state = KeyState::default().after(deletion, true, Version::NONE);
    let made = KeyState::default().after(anew, false, horizon);
    assert!(state.after(anew, false, horizon).lost.is_empty());
    assert!(state.merge(&made).lost.is_empty() && made.merge(&state).lost.is_empty());
    let too_late = version(8, 1);
    let state = KeyState::default().after(too_late, true, Version::NONE);
    assert_eq!(state.after(anew, false, horizon).lost, BTreeSet::from([too_late]));
}

#[test]
fn a_change_from_before_a_horizon_is_not_new_where_there_is_no_row() {
    let (put, horizon, later) = (version(5, 1), version(7, 0), version(9, 1));
    let gone = KeyState { seen: Seen::from_iter([horizon]), ..KeyState::default() };
    assert_eq!(gone.after(put, false, Version::NONE), gone);
    let anew = gone.after(later, false, horizon);
    assert_eq!(anew.version, later);
    let deletion = version(6, 2);
    for [one, two] in [[put, deletion], [deletion, put]] {
        let again = |state: KeyState, it| match it == put {
            true => state.after(put, false, Version::NONE),
            false => state.after(deletion, true, put),
        };
        let state = again(again(anew.clone(), one), two);
        assert!(state.lost.is_empty() && state.awaited.is_empty(), "{state:?}");
    }
    let row = KeyState::default().after(put, false, Version::NONE);
    assert_eq!(gone.merge(&row).version, put, "a row is all that is known");
}
