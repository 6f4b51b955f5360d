//! How `GeoRouter` reads and lists.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use terrace_core::{
    Consistency, Error, ErrorKind, Key, Page, Read, ReadOptions, Result, Scan, Token, Version,
};

use super::{Routes, may_ask_another};

impl Routes {
    pub(super) async fn read(&self, keys: &[Key], how: &ReadOptions) -> Result<Vec<Read>> {
        self.open()?;
        how.deadline.check(self.runtime.now())?;
        let asked = self.place(how.region)?;
        let strongly = match how.consistency {
            Consistency::Default => false,
            Consistency::Strong => true,
            Consistency::MaxStale(within) => !self.is_young(asked, asked, within),
        };
        if strongly {
            return self.read_strongly(asked, keys, how).await;
        }
        let mut failure = None;
        for at in self.in_its_place(asked) {
            match self.read_at(asked, at, keys, how).await {
                Err(error) if may_ask_another(&error) => failure = Some(error),
                answer => return answer,
            }
            how.deadline.check(self.runtime.now())?;
        }
        Err(failure.unwrap_or_else(unanswered))
    }

    /// What a region answers, with what others have of keys that it has never heard of.
    async fn read_at(
        &self,
        asked: usize,
        at: usize,
        keys: &[Key],
        how: &ReadOptions,
    ) -> Result<Vec<Read>> {
        let proof = self.prove(asked, at, how).await?;
        let local = ReadOptions { token: proof.token, region: None, ..how.clone() };
        let all = (0..keys.len()).collect::<Vec<_>>();
        let mut reads = self.ask(asked, at, keys, &all, &local).await?;
        // What another region has shown may be in the origin's database alone, and not yet told to its cache.
        let strong = ReadOptions { consistency: Consistency::Strong, ..how.clone() };
        let also = proof.origins.iter().map(|origin| self.ask(asked, *origin, keys, &all, &strong));
        for (origin, others) in proof.origins.iter().zip(join_all(also).await) {
            let others = others.map_err(|error| self.unproved(*origin, error))?;
            reads = reads.into_iter().zip(others).map(|(one, other)| newer(one, other)).collect();
        }
        self.look_elsewhere(asked, at, keys, how, &mut reads).await?;
        how.after(&reads)?;
        Ok(reads)
    }

    /// Looks for keys that a region has never heard of in the others, all at once.
    async fn look_elsewhere(
        &self,
        asked: usize,
        at: usize,
        keys: &[Key],
        how: &ReadOptions,
        reads: &mut [Read],
    ) -> Result<()> {
        let now = self.runtime.now();
        let mut parts = BTreeMap::<usize, Vec<usize>>::new();
        let mut unheard = Vec::new();
        for (place, read) in reads.iter().enumerate() {
            let key = &keys[place];
            let resident = self.home(key).filter(|(_, home)| home.resides).map(|(home, _)| home);
            match resident {
                Some(home) if home != at => parts.entry(home).or_default().push(place),
                Some(_) => {}
                None if read.record.is_some() || read.version != Version::NONE => {}
                None if self.absent.has(key, now) => {}
                None => unheard.push(place),
            }
        }
        let resident = parts.values().flatten().copied().collect::<Vec<_>>();
        let others = (0..self.regions.len()).filter(|other| *other != at);
        for other in others.filter(|other| self.link(asked, *other).is_well()) {
            if !unheard.is_empty() {
                parts.entry(other).or_default().extend(&unheard);
            }
        }
        let whole = (0..self.regions.len()).all(|other| self.link(asked, other).is_well());
        let questions = parts.iter().map(|(other, places)| async move {
            (*other, places, self.ask(asked, *other, keys, places, how).await)
        });
        let (mut silent, mut found) = (!whole, false);
        for (other, places, answer) in join_all(questions).await {
            match answer {
                Ok(answers) => {
                    for (place, answer) in places.iter().zip(answers) {
                        found |= answer.record.is_some();
                        reads[*place] = newer(reads[*place].clone(), answer);
                    }
                }
                // Nobody else has the key.
                Err(error) if places.iter().any(|place| resident.contains(place)) => {
                    return Err(self.unproved(other, error));
                }
                Err(error) => {
                    tracing::debug!(region = %self.regions[other].name, %error, "not asked");
                    silent = true;
                }
            }
        }
        if found {
            self.fallbacks.fetch_add(1, Ordering::Relaxed);
        }
        let nowhere = |place: &usize| reads[*place].record.is_none();
        for place in unheard.into_iter().filter(nowhere).filter(|_| !silent) {
            self.absent.add(&keys[place], now);
        }
        Ok(())
    }

    /// Asks one region for some of the keys.
    async fn ask(
        &self,
        from: usize,
        at: usize,
        keys: &[Key],
        places: &[usize],
        how: &ReadOptions,
    ) -> Result<Vec<Read>> {
        let link = self.link(from, at);
        let wanted = places.iter().map(|place| keys[*place].clone()).collect::<Vec<_>>();
        let deadline = self.attempt(how.deadline);
        let how = ReadOptions { deadline, region: None, ..how.clone() };
        let mut reads =
            link.call(deadline, &self.runtime, link.store().read(&wanted, &how)).await?;
        if reads.len() != wanted.len() {
            return Err(Error::new(ErrorKind::Internal, "a store broke its contract"));
        }
        for read in &mut reads {
            read.origin = read.origin.in_region(self.regions[at].name);
        }
        Ok(reads)
    }

    /// The newest of what all regions have; of a key with a home, what that has.
    async fn read_strongly(
        &self,
        asked: usize,
        keys: &[Key],
        how: &ReadOptions,
    ) -> Result<Vec<Read>> {
        let how = ReadOptions { consistency: Consistency::Strong, ..how.clone() };
        let mut parts = BTreeMap::<usize, Vec<usize>>::new();
        for (place, key) in keys.iter().enumerate() {
            let homes = match self.home(key) {
                Some((home, _)) => home..home + 1,
                None => 0..self.regions.len(),
            };
            homes.for_each(|region| parts.entry(region).or_default().push(place));
        }
        let how = &how;
        let questions = parts.iter().map(|(region, places)| async move {
            (*region, places, self.ask(asked, *region, keys, places, how).await)
        });
        let mut reads = vec![None::<Read>; keys.len()];
        for (region, places, answer) in join_all(questions).await {
            let answers = answer.map_err(|error| self.unproved(region, error))?;
            for (place, answer) in places.iter().zip(answers) {
                let known = reads[*place].take();
                reads[*place] = Some(match known {
                    // What has the same version is nearer where it was asked.
                    Some(known) if region == asked => newer(answer, known),
                    Some(known) => newer(known, answer),
                    None => answer,
                });
            }
        }
        let reads = reads.into_iter().flatten().collect::<Vec<_>>();
        how.after(&reads)?;
        Ok(reads)
    }

    pub(super) async fn scan(&self, scan: &Scan, how: &ReadOptions) -> Result<Page> {
        self.open()?;
        how.deadline.check(self.runtime.now())?;
        let asked = self.place(how.region)?;
        let strongly = match how.consistency {
            Consistency::Default => false,
            Consistency::Strong => true,
            Consistency::MaxStale(within) => !self.is_young(asked, asked, within),
        };
        let mut failure = None;
        for at in self.in_its_place(asked) {
            let token = match strongly {
                // A page cannot be put together out of several: it would lack what was deleted.
                true => self.come_to_heads(asked, at, self.attempt(how.deadline)).await?,
                false => self.prove(asked, at, how).await.map(|proof| {
                    proof.origins.is_empty().then(|| proof.token.unwrap_or_default())
                })?,
            };
            let Some(token) = token else { return Err(behind()) };
            match self.scan_at(asked, at, scan, how, token).await {
                Err(error) if may_ask_another(&error) => failure = Some(error),
                answer => return answer,
            }
        }
        Err(failure.unwrap_or_else(unanswered))
    }

    async fn scan_at(
        &self,
        asked: usize,
        at: usize,
        scan: &Scan,
        how: &ReadOptions,
        token: Token,
    ) -> Result<Page> {
        let link = self.link(asked, at);
        let deadline = self.attempt(how.deadline);
        let token = Some(token).filter(|token| !token.is_empty());
        let how = ReadOptions { token, deadline, region: None, ..how.clone() };
        let mut page = link.call(deadline, &self.runtime, link.store().scan(scan, &how)).await?;
        page.origin = page.origin.in_region(self.regions[at].name);
        Ok(page)
    }

    /// The failure of a region that alone knows what was asked.
    fn unproved(&self, region: usize, error: Error) -> Error {
        if !may_ask_another(&error) {
            return error;
        }
        let name = self.regions[region].name;
        Error::new(
            ErrorKind::Unavailable,
            format!(
                "only region {name} can answer what was asked, and it does not; try again, or ask for \
                 less: no strong consistency, no token"
            ),
        )
        .caused_by(error)
    }
}

/// The answer with the higher version; the first when they are equal.
fn newer(one: Read, other: Read) -> Read {
    if other.version > one.version { other } else { one }
}

fn behind() -> Error {
    let message = "the region has not heard all that the list must show; try again, ask another region, \
                   or ask for less: no strong consistency, no token";
    Error::new(ErrorKind::Unavailable, message)
}

fn unanswered() -> Error {
    Error::new(ErrorKind::Unavailable, "no region answers; try again")
}
