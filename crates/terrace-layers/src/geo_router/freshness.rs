//! Whether a region has followed the others as far as a read asks.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use terrace_core::history::origin;
use terrace_core::{
    ChangeLog, Checkpoint, Checkpoints, Deadline, LogPosition, Position, ReadOptions, RegionId,
    Result, Token,
};

use super::{Region, Routes};

/// What a read must do beyond asking its region.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// What the region must prove itself.
    pub(super) token: Option<Token>,
    /// The regions that must be asked, too, because this one has not followed them so far.
    pub(super) origins: Vec<usize>,
}

/// A place to which an origin must have been followed.
struct Wanted {
    origin: usize,
    log: Arc<dyn ChangeLog>,
    /// `None` for what only the origin can tell: its history is another one by now.
    place: Option<LogPosition>,
    /// The position of the origin's history that this is about. It may lie beyond the end of the log.
    until: Option<Position>,
}

/// How far a region came.
enum Reached {
    /// Everything is reached at these checkpoints.
    All(Arc<Checkpoints>),
    /// These origins were not followed far enough in time.
    Without(Vec<usize>),
}

impl Wanted {
    /// How far this log was followed.
    fn known<'a>(&self, id: RegionId, by: &'a Checkpoints) -> Option<&'a Checkpoint> {
        by.of(id).filter(|known| known.complete && known.is_in(&self.log.name()))
    }
}

impl Routes {
    /// Waits until a region, asked from another one, has followed the others as far as the token of a read
    /// asks; a bounded time.
    pub(super) async fn prove(&self, from: usize, at: usize, how: &ReadOptions) -> Result<Proof> {
        let Some(token) = &how.token else { return Ok(Proof::default()) };
        let marks = self.foreign(from, at, token);
        if marks.is_empty() {
            return Ok(Proof { token: how.token.clone(), origins: Vec::new() });
        }
        let own = Deadline::at(self.runtime.now() + self.options.token_wait);
        let by = own.min(how.deadline);
        let mut wanted = Vec::new();
        for part in join_all(marks.iter().map(|mark| self.wanted(from, at, *mark, by))).await {
            wanted.extend(part);
        }
        let heard = self.link(from, at).heard();
        if self.missing(from, &wanted, &heard).is_empty() {
            return Ok(proved(token, &heard));
        }
        Ok(match self.come_to(from, at, &wanted, by).await? {
            Reached::All(checkpoints) => proved(token, &checkpoints),
            Reached::Without(origins) => Proof { token: how.token.clone(), origins },
        })
    }

    /// Waits until a region has followed all others to where their logs end now.
    pub(super) async fn come_to_heads(
        &self,
        from: usize,
        at: usize,
        by: Deadline,
    ) -> Result<Option<Token>> {
        let others = (0..self.regions.len()).filter(|place| *place != at);
        let heads = others.map(|origin| async move {
            let link = self.link(from, origin);
            let log = link.region().own_log();
            let head = link.call(by, &self.runtime, log.head()).await?;
            Ok(Wanted { origin, until: Some(log.position_of(head)), log, place: Some(head) })
        });
        let wanted = join_all(heads).await.into_iter().collect::<Result<Vec<_>>>()?;
        match self.come_to(from, at, &wanted, by).await? {
            Reached::All(checkpoints) => Ok(Some(checkpoints.token.clone())),
            Reached::Without(_) => Ok(None),
        }
    }

    /// Whether a region has heard all others within this time.
    pub(super) fn is_young(&self, from: usize, at: usize, within: Duration) -> bool {
        let heard = self.link(from, at).heard();
        let now = self.runtime.now();
        let is_heard = |(place, other): (usize, &Region)| {
            let known = heard.of(other.id).filter(|known| known.complete);
            let age = known.and_then(|known| other.heads.age(known.position, now));
            place == at || age.is_some_and(|age| age <= within)
        };
        self.regions.iter().enumerate().all(is_heard)
    }

    /// What a token asks of other regions' histories.
    fn foreign(&self, from: usize, at: usize, token: &Token) -> Vec<(usize, Option<Position>)> {
        let mut found = Vec::new();
        for (name, position) in token.marks() {
            let of = (0..self.regions.len()).filter(|place| *place != at).find_map(|place| {
                let history = self.link(from, place).region().history()?;
                let kin = origin(&history) == origin(name);
                kin.then(|| (place, (history == *name).then_some(position)))
            });
            found.extend(of);
        }
        found
    }

    /// Where logs must have been followed to for one mark: that of its region, and those which that region
    /// had followed by then, as its answers have shown these changes, too.
    async fn wanted(
        &self,
        from: usize,
        at: usize,
        (origin, mark): (usize, Option<Position>),
        by: Deadline,
    ) -> Vec<Wanted> {
        let link = self.link(from, origin);
        let log = link.region().own_log();
        let only_there = |log| vec![Wanted { origin, log, place: None, until: None }];
        let Some(mark) = mark else { return only_there(log) };
        let covers = |known: &Checkpoints| link.position(known).is_some_and(|it| it >= mark);
        let mut shown = link.heard();
        if !covers(&shown) {
            match link.look(by, &self.runtime).await {
                Ok(found) if covers(&found) => shown = found,
                // Nobody else knows what it had followed.
                _ => return only_there(log),
            }
        }
        let place = Some(log.place_of(mark));
        let mut wanted = vec![Wanted { origin, log, place, until: Some(mark) }];
        for (place, other) in self.regions.iter().enumerate() {
            if place != at
                && place != origin
                && let Some(known) = shown.of(other.id)
            {
                let log = self.link(from, place).region().own_log();
                let there = known.is_in(&log.name()).then_some(known.position);
                wanted.push(Wanted { origin: place, log, place: there, until: None });
            }
        }
        wanted
    }

    /// The origins that a region has not followed far enough, as far as is known.
    fn missing(&self, from: usize, wanted: &[Wanted], by: &Checkpoints) -> Vec<usize> {
        let far = |it: &&Wanted| !self.is_reached(from, it, by);
        let mut origins = wanted.iter().filter(far).map(|it| it.origin).collect::<Vec<_>>();
        origins.sort_unstable();
        origins.dedup();
        origins
    }

    /// Whether a log was followed to where it is wanted, or to where it has nothing more of that.
    fn is_reached(&self, from: usize, wanted: &Wanted, by: &Checkpoints) -> bool {
        let Some(place) = wanted.place else { return false };
        let Some(known) = wanted.known(self.regions[wanted.origin].id, by) else { return false };
        let (link, log) = (self.link(from, wanted.origin), wanted.log.name());
        let is_quiet = |until| link.is_quiet(&log, known.position, until);
        known.position >= place || wanted.until.is_some_and(is_quiet)
    }

    /// The same, after the logs were asked whether they have anything more.
    async fn missing_with_news(
        &self,
        from: usize,
        wanted: &[Wanted],
        reached: &Checkpoints,
        by: Deadline,
    ) -> Vec<usize> {
        let questions = wanted.iter().filter(|it| !self.is_reached(from, it, reached));
        join_all(questions.map(|it| self.ask_for_news(from, it, reached, by))).await;
        self.missing(from, wanted, reached)
    }

    /// Asks a log whether it has more of what is wanted than was followed; the link remembers that.
    async fn ask_for_news(&self, from: usize, it: &Wanted, reached: &Checkpoints, by: Deadline) {
        let known = it.known(self.regions[it.origin].id, reached);
        if let (Some(known), Some(until)) = (known, it.until) {
            let (link, log) = (self.link(from, it.origin), it.log.name());
            let stretch = (known.position, until);
            let _where_it_does_not_answer_there_may_be =
                link.has_news(&log, stretch, by, &self.runtime).await;
        }
    }

    /// The checkpoints at which all is reached; or which origins are not, by the deadline.
    async fn come_to(
        &self,
        from: usize,
        at: usize,
        wanted: &[Wanted],
        by: Deadline,
    ) -> Result<Reached> {
        let link = self.link(from, at);
        for round in 0_u32.. {
            // The look itself is no part of the wait: it is made at least once.
            let found = link.look(self.attempt(Deadline::NEVER), &self.runtime).await?;
            let missing = self.missing_with_news(from, wanted, &found, by).await;
            if missing.is_empty() {
                return Ok(Reached::All(found));
            }
            let hopeless = wanted.iter().any(|it| it.place.is_none()) || !self.options.replicates;
            if hopeless || by.passed(self.runtime.now()) {
                return Ok(Reached::Without(missing));
            }
            let next = wanted.iter().find(|it| missing.contains(&it.origin));
            let Some((origin, place)) = next.and_then(|it| Some((it.origin, it.place?))) else {
                return Ok(Reached::Without(missing));
            };
            self.progress(at, origin, place, round, by).await;
        }
        Ok(Reached::Without(Vec::new()))
    }

    /// Returns when a region may have come to a place in the log of another one.
    pub(super) async fn progress(
        &self,
        at: usize,
        origin: usize,
        place: LogPosition,
        round: u32,
        by: Deadline,
    ) {
        // Where another instance follows, looks that begin at 2 ms and double.
        let look = Duration::from_millis(2 << round.min(6));
        match &self.regions[at].following[origin] {
            Some(following) => following.follow().progressed(place, look, by).await,
            None => {
                let pause = self.runtime.sleep(look);
                self.runtime.within(by, pause).await;
            }
        }
    }
}

/// A read that asks this of the region itself sees all that the token asks.
fn proved(token: &Token, reached: &Checkpoints) -> Proof {
    let mut token = token.clone();
    token.merge(&reached.token);
    Proof { token: Some(token), origins: Vec::new() }
}
