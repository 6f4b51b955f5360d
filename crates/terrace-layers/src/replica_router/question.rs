//! What may be asked of one server or another: records by key, or a page of them.

use std::time::Duration;

use terrace_core::{
    BoxFuture, Key, Origin, Page, Position, Read, ReadOptions, Result, Scan, Store,
};

/// Something to read.
pub(super) trait Question: Sync {
    type Answer: Send;

    /// Whether an answer itself says what it proves. Then a replica need not hear of the token, and
    /// reads of many callers are one batch.
    const PROVES: bool;

    fn ask<'a>(
        &'a self,
        store: &'a dyn Store,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Self::Answer>>;

    /// Whether it proves, in this history, what was asked of it: all up to this position.
    fn proves(answer: &Self::Answer, history: &str, asked: Position) -> bool;

    /// Everything up to here was visible to it.
    fn through(answer: &Self::Answer) -> Option<Position>;

    /// Says where it came from, and how old it may be.
    fn mark(answer: &mut Self::Answer, origin: Origin, age: Duration);
}

/// Records by their keys.
pub(super) struct Keys<'k>(pub(super) &'k [Key]);

impl Question for Keys<'_> {
    type Answer = Vec<Read>;

    const PROVES: bool = true;

    fn ask<'a>(
        &'a self,
        store: &'a dyn Store,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        store.read(self.0, how)
    }

    fn proves(answer: &Vec<Read>, history: &str, asked: Position) -> bool {
        let proves = |read: &Read| {
            read.proof.as_ref().is_some_and(|it| *it.history == *history && it.through >= asked)
        };
        answer.iter().all(proves)
    }

    fn through(answer: &Vec<Read>) -> Option<Position> {
        answer.first()?.proof.as_ref().map(|proof| proof.through)
    }

    fn mark(answer: &mut Vec<Read>, origin: Origin, age: Duration) {
        for read in answer {
            read.origin = origin;
            read.age = age;
        }
    }
}

/// A page of records.
pub(super) struct Records<'s>(pub(super) &'s Scan);

impl Question for Records<'_> {
    type Answer = Page;

    const PROVES: bool = false;

    fn ask<'a>(
        &'a self,
        store: &'a dyn Store,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>> {
        store.scan(self.0, how)
    }

    /// The store has looked at the token.
    fn proves(answer: &Page, history: &str, _: Position) -> bool {
        answer.token.position(history).is_some()
    }

    fn through(_: &Page) -> Option<Position> {
        None
    }

    fn mark(answer: &mut Page, origin: Origin, age: Duration) {
        answer.origin = origin;
        answer.age = age;
    }
}
