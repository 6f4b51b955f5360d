//! Batches whose writes go to several places, each of which applies its part or fails.

use terrace_core::{
    Durability, Error, ErrorKind, Origin, Outcome, Receipt, Result, Token, Version, Write,
};

/// A write and its place in the batch.
pub(crate) type Placed = (usize, Write);

/// Writes that their places did not apply, or may not have.
#[derive(Default)]
pub(crate) struct Failures {
    error: Option<Error>,
    writes: Vec<(usize, Outcome, Origin)>,
}

impl Failures {
    /// Writes that were sent there, and failed.
    pub(crate) fn add(&mut self, origin: Origin, writes: Vec<Placed>, error: Error) {
        let outcome = match error.kind() {
            ErrorKind::OutcomeUnknown | ErrorKind::Internal | ErrorKind::Corrupt => {
                Outcome::Unknown
            }
            _ => Outcome::Unavailable,
        };
        self.writes.extend(writes.into_iter().map(|(place, _)| (place, outcome, origin)));
        // Of several failures the one counts that leaves most in doubt.
        let doubt = |error: &Error| match error.kind() {
            ErrorKind::OutcomeUnknown => 2,
            ErrorKind::Internal | ErrorKind::Corrupt => 1,
            _ => 0,
        };
        if self.error.as_ref().is_none_or(|known| doubt(&error) > doubt(known)) {
            self.error = Some(error);
        }
    }

    /// The receipts of all writes; the error where no place did anything.
    ///
    /// # Errors
    /// That one of all failures which leaves most in doubt.
    pub(crate) fn into_answer(self, mut receipts: Vec<Option<Receipt>>) -> Result<Vec<Receipt>> {
        if let Some(error) = self.error {
            if self.writes.len() == receipts.len() {
                return Err(error);
            }
            tracing::warn!(%error, writes = self.writes.len(), "a part of a batch was not written");
        }
        let known = receipts.iter().flatten().map(|receipt| receipt.durability).max();
        let durability = known.unwrap_or(Durability::Accepted);
        for (place, outcome, origin) in self.writes {
            receipts[place] = Some(Receipt {
                outcome,
                version: Version::NONE,
                // It has reached nothing, and says nothing of what the others have.
                durability,
                token: Token::default(),
                origin,
                event: None,
                cached: false,
            });
        }
        receipts.into_iter().collect::<Option<Vec<_>>>().ok_or_else(|| {
            let message = "a store broke its contract; writes may have been applied";
            Error::new(ErrorKind::OutcomeUnknown, message)
        })
    }
}
