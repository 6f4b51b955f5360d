//! What may be asked of one server or another: records by key, or a page of them.

use std::time::Duration;

use terrace_core::{
    BoxFuture, Key, Origin, Page, Position, Read, ReadOptions, Result, Scan, Store, Token,
};

/// Something to read.
pub(super) trait Question: Sync {
    type Answer: Send;

    fn ask<'a>(
        &'a self,
        store: &'a dyn Store,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Self::Answer>>;

    /// Says where it came from, how old it may be, and what was proved beside.
    fn mark(answer: &mut Self::Answer, origin: Origin, age: Duration, proved: Option<&Token>);

    /// The latest place in the log that it proves to have been seen.
    fn seen(answer: &Self::Answer, log: &str) -> Option<Position>;
}

/// Records by their keys.
pub(super) struct Keys<'k>(pub(super) &'k [Key]);

impl Question for Keys<'_> {
    type Answer = Vec<Read>;

    fn ask<'a>(
        &'a self,
        store: &'a dyn Store,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        store.read(self.0, how)
    }

    fn mark(answer: &mut Vec<Read>, origin: Origin, age: Duration, proved: Option<&Token>) {
        for read in answer {
            read.origin = origin;
            read.age = age;
            if let Some(proved) = proved {
                read.token.merge(proved);
            }
        }
    }

    fn seen(answer: &Vec<Read>, log: &str) -> Option<Position> {
        answer.first().and_then(|read| read.token.position(log))
    }
}

/// A page of records.
pub(super) struct Records<'s>(pub(super) &'s Scan);

impl Question for Records<'_> {
    type Answer = Page;

    fn ask<'a>(
        &'a self,
        store: &'a dyn Store,
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Page>> {
        store.scan(self.0, how)
    }

    fn mark(answer: &mut Page, origin: Origin, _: Duration, _: Option<&Token>) {
        answer.origin = origin;
    }

    fn seen(_: &Page, _: &str) -> Option<Position> {
        None
    }
}
