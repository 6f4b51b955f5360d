//! Which slots to move, so that as few as possible move.

use terrace_core::{Move, SLOTS, Slot, SlotSet};

/// A shard, and its slots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Its number.
    pub number: u16,
    /// What it has.
    pub slots: SlotSet,
}

/// What shall change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A new shard takes its share; this is its address.
    Add(String),
    /// The shard of this number gives all it has to the others.
    Remove(u16),
    /// All have the same share.
    Rebalance,
}

/// The fewest moves after which all shards but `removed` have the same number of slots, give or take
/// one.
pub(super) fn even(shares: &[Share], removed: Option<u16>) -> Vec<Move> {
    let stay = shares.iter().filter(|share| Some(share.number) != removed).count().max(1);
    let (fair, more) = (usize::from(SLOTS) / stay, usize::from(SLOTS) % stay);
    // Those who have most keep the odd ones.
    let mut order = shares.iter().collect::<Vec<_>>();
    order.sort_by_key(|share| (std::cmp::Reverse(share.slots.len()), share.number));
    let (mut surplus, mut wanting) = (Vec::new(), Vec::new());
    let mut odd = more;
    for share in order {
        let goal = match Some(share.number) == removed {
            true => 0,
            false => {
                let one = usize::from(odd > 0);
                odd -= one;
                fair + one
            }
        };
        let has = share.slots.len();
        if has > goal {
            // The highest leave, so that ranges stay whole.
            let given = share.slots.iter().skip(goal).collect::<Vec<Slot>>();
            surplus.push((share.number, given));
        } else if has < goal {
            wanting.push((share.number, goal - has));
        }
    }
    let mut moves = Vec::new();
    for (to, mut wants) in wanting {
        for (from, given) in &mut surplus {
            let take = wants.min(given.len());
            if take > 0 {
                let slots = given.split_off(given.len() - take).into_iter().collect();
                moves.push(Move { from: *from, to, slots });
                wants -= take;
            }
        }
    }
    moves
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn afterwards_all_have_a_fair_share_and_no_more_moved_than_must(
            owners in proptest::collection::vec(0..5u16, usize::from(SLOTS)),
            removed in proptest::option::of(0..5u16),
        ) {
            let slots_of = |number| (0..SLOTS).map(Slot::new)
                .filter(|slot| owners[slot.index()] == number).collect::<SlotSet>();
            let mut shares = (0..5)
                .map(|number| Share { number, slots: slots_of(number) }).collect::<Vec<_>>();
            let moves = even(&shares, removed);
            let moved = moves.iter().map(|it| it.slots.len()).sum::<usize>();
            let stay = if removed.is_some() { 4 } else { 5 };
            let fair = usize::from(SLOTS) / stay;
            let must = shares.iter().map(|share| match Some(share.number) == removed {
                true => share.slots.len(),
                false => share.slots.len().saturating_sub(fair + 1),
            }).sum::<usize>();
            prop_assert!(moved <= must + stay);
            for it in moves {
                let place = |number| usize::from(number);
                prop_assert!(it.slots.without(&shares[place(it.from)].slots).is_empty());
                shares[place(it.from)].slots = shares[place(it.from)].slots.without(&it.slots);
                shares[place(it.to)].slots = shares[place(it.to)].slots.with(&it.slots);
            }
            for share in shares {
                let has = share.slots.len();
                match Some(share.number) == removed {
                    true => prop_assert_eq!(has, 0),
                    false => prop_assert!(has == fair || has == fair + 1),
                }
            }
        }
    }

    #[test]
    fn a_fourth_shard_takes_a_quarter() {
        let third = |number: u16| Share {
            number,
            slots: (number * 5461..(number + 1) * 5461).map(Slot::new).collect(),
        };
        let mut shares = vec![third(0), third(1), third(2)];
        shares[2].slots.insert(Slot::new(SLOTS - 1));
        shares.push(Share { number: 3, slots: SlotSet::default() });
        let moves = even(&shares, None);
        assert!(moves.iter().all(|it| it.to == 3));
        assert_eq!(moves.iter().map(|it| it.slots.len()).sum::<usize>(), 4096);
    }
}
