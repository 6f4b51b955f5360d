//! How `ShardRouter` reads.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use terrace_core::{Error, ErrorKind, Key, Read, ReadOptions, Result};

use super::map::{ShardMap, View};
use super::{Shared, unreached};

impl Shared {
    pub(super) async fn read(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        self.open()?;
        how.deadline.check(self.runtime.now())?;
        keys.iter().for_each(|key| self.hot.note(key));
        let map = self.map.load_full();
        if let Some(view) = map.sole(keys) {
            match view.read(keys, how).await {
                Err(error) if error.kind() == ErrorKind::Moved => {}
                answer => return answer,
            }
        }
        self.read_spread(keys, how, map).await
    }

    /// Asks all shards that have a part of the keys at once, and again for what has moved.
    async fn read_spread(
        &self,
        keys: &[Key],
        how: &ReadOptions,
        mut map: Arc<ShardMap>,
    ) -> Result<Vec<Read>> {
        let mut waits = self.waits(how.deadline);
        let mut answers = vec![None; keys.len()];
        let mut left = (0..keys.len()).collect::<Vec<_>>();
        while !left.is_empty() {
            let (parts, nowhere) = split(&map, keys, left)?;
            left = nowhere;
            let asked = parts.into_iter().filter_map(|(number, places)| {
                let view = map.view_of(number)?;
                let wanted = places.iter().map(|place| keys[*place].clone()).collect::<Vec<_>>();
                Some(async move { (view.read(&wanted, how).await, places) })
            });
            for (answer, places) in join_all(asked).await {
                match answer {
                    Ok(reads) => {
                        for (place, read) in places.into_iter().zip(reads) {
                            answers[place] = Some(read);
                        }
                        how.after(answers.iter().flatten())?;
                    }
                    Err(error) if error.kind() == ErrorKind::Moved => left.extend(places),
                    Err(error) => return Err(error),
                }
            }
            if !left.is_empty() {
                self.moved.fetch_add(1, Ordering::Relaxed);
                self.look_again(&map, &mut waits).await?;
                map = self.map.load_full();
            }
        }
        answers.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| {
            Error::new(ErrorKind::Internal, "a store broke its contract").during("read")
        })
    }
}

/// The places of the keys by shard, and of those that are on their way.
type Parts = (BTreeMap<u16, Vec<usize>>, Vec<usize>);

fn split(map: &ShardMap, keys: &[Key], places: Vec<usize>) -> Result<Parts> {
    let (mut parts, mut nowhere) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
    for place in places {
        match map.owner(&keys[place]) {
            Some(number) => parts.entry(number).or_default().push(place),
            None if map.whole => nowhere.push(place),
            None => return Err(unreached()),
        }
    }
    Ok((parts, nowhere))
}

impl View {
    /// Reads here, and says so.
    async fn read(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        self.tally.reads.fetch_add(keys.len() as u64, Ordering::Relaxed);
        let mut reads = self.tally.time(self.store.read(keys, how)).await?;
        if reads.len() != keys.len() {
            return Err(Error::new(ErrorKind::Internal, "a store broke its contract"));
        }
        for read in &mut reads {
            read.origin = read.origin.on_shard(self.number);
        }
        Ok(reads)
    }
}
