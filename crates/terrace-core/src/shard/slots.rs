//! Slots, and sets of them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{Error, Result};

/// How many slots there are, as in Redis Cluster: enough to share out evenly among hundreds of
/// shards, few enough that a map of them is 32 KiB.
pub const SLOTS: u16 = 16_384;

/// One of the [`SLOTS`] parts into which all keys fall. A slot lives on one shard, whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(u16);

impl Slot {
    /// The slot of this number, modulo [`SLOTS`].
    pub const fn new(number: u16) -> Self {
        Self(number % SLOTS)
    }

    /// Its number, below [`SLOTS`].
    pub const fn get(self) -> u16 {
        self.0
    }

    /// Its number as an index.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

const WORDS: usize = SLOTS as usize / 64;

/// A set of slots. Its text form is ranges: `0-5460,10923`.
#[derive(Clone, PartialEq, Eq)]
pub struct SlotSet(Box<[u64; WORDS]>);

impl Default for SlotSet {
    fn default() -> Self {
        Self(Box::new([0; WORDS]))
    }
}

impl SlotSet {
    /// Whether the slot is in it.
    pub fn contains(&self, slot: Slot) -> bool {
        self.0[slot.index() / 64] >> (slot.index() % 64) & 1 == 1
    }

    /// Adds a slot.
    pub fn insert(&mut self, slot: Slot) {
        self.0[slot.index() / 64] |= 1 << (slot.index() % 64);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// The slots, by number.
    pub fn iter(&self) -> impl Iterator<Item = Slot> {
        (0..SLOTS).map(Slot).filter(|slot| self.contains(*slot))
    }

    /// The slots of either.
    #[must_use]
    pub fn with(&self, other: &Self) -> Self {
        self.merged(other, |mine, theirs| mine | theirs)
    }

    /// The slots of this one that the other lacks.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        self.merged(other, |mine, theirs| mine & !theirs)
    }

    /// The slots of both.
    #[must_use]
    pub fn within(&self, other: &Self) -> Self {
        self.merged(other, |mine, theirs| mine & theirs)
    }

    fn merged(&self, other: &Self, of: impl Fn(u64, u64) -> u64) -> Self {
        let mut all = self.clone();
        all.0.iter_mut().zip(&*other.0).for_each(|(mine, theirs)| *mine = of(*mine, *theirs));
        all
    }
}

impl FromIterator<Slot> for SlotSet {
    fn from_iter<T: IntoIterator<Item = Slot>>(slots: T) -> Self {
        let mut set = Self::default();
        slots.into_iter().for_each(|slot| set.insert(slot));
        set
    }
}

impl fmt::Display for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut slots = self.iter().map(Slot::get).peekable();
        let mut between = "";
        while let Some(first) = slots.next() {
            let mut last = first;
            while let Some(next) = slots.next_if_eq(&(last + 1)) {
                last = next;
            }
            write!(f, "{between}{first}")?;
            if last > first {
                write!(f, "-{last}")?;
            }
            between = ",";
        }
        Ok(())
    }
}

impl fmt::Debug for SlotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{{{self}}}")
    }
}

impl std::str::FromStr for SlotSet {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::invalid("slots are written as ranges below 16384, as in 0-5460,10923");
        let number = |text: &str| text.parse().ok().filter(|n| *n < SLOTS).ok_or_else(wrong);
        let mut set = Self::default();
        for range in text.split(',').filter(|range| !range.is_empty()) {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            (number(first)?..=number(last)?).for_each(|slot| set.insert(Slot(slot)));
        }
        Ok(set)
    }
}

impl Serialize for SlotSet {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for SlotSet {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        text.parse().map_err(|error: Error| serde::de::Error::custom(error.message().to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_set_is_what_its_text_says(numbers in proptest::collection::vec(0..SLOTS, 0..200)) {
            let set: SlotSet = numbers.iter().copied().map(Slot::new).collect();
            prop_assert_eq!(&set.to_string().parse::<SlotSet>().unwrap(), &set);
            prop_assert!(numbers.iter().all(|number| set.contains(Slot::new(*number))));
            prop_assert_eq!(set.iter().count(), set.len());
        }

        #[test]
        fn parts_make_the_whole(a in proptest::collection::vec(0..SLOTS, 0..99),
                                b in proptest::collection::vec(0..SLOTS, 0..99)) {
            let set = |numbers: Vec<u16>| numbers.into_iter().map(Slot::new).collect::<SlotSet>();
            let (a, b) = (set(a), set(b));
            prop_assert_eq!(a.without(&b).with(&a.within(&b)), a.clone());
            prop_assert!(a.without(&b).within(&b).is_empty());
        }
    }

    #[test]
    fn wrong_texts_are_refused() {
        assert_eq!("0-2,7".parse::<SlotSet>().unwrap().len(), 4);
        for text in ["16384", "a", "1-", "-1", "0-99999"] {
            assert!(text.parse::<SlotSet>().is_err(), "{text}");
        }
    }
}
