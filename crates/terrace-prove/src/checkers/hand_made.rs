//! Operations for hand-made histories; times in milliseconds, one key.

use std::ops::Range;
use std::time::Duration;

use crate::{Action, Operation, Outcome};

pub(super) fn ms(time: u64) -> Duration {
    Duration::from_millis(time)
}

fn answered(action: Action, time: Range<u64>) -> Operation {
    Operation {
        invoked: ms(time.start),
        ended: ms(time.end),
        outcome: Outcome::Ok,
        status: 200,
        ..Operation::sent("a", "k", action)
    }
}

pub(super) fn read(found: &str, time: Range<u64>) -> Operation {
    Operation { found: Some(found.to_owned()), ..answered(Action::Read, time) }
}

pub(super) fn missing(time: Range<u64>) -> Operation {
    answered(Action::Read, time)
}

pub(super) fn write(value: &str, time: Range<u64>) -> Operation {
    answered(Action::Write(value.to_owned()), time)
}

pub(super) fn deleted(time: Range<u64>) -> Operation {
    answered(Action::Delete, time)
}

pub(super) fn unknown(value: &str, time: Range<u64>) -> Operation {
    Operation { outcome: Outcome::Unknown, status: 504, ..write(value, time) }
}

pub(super) fn refused(value: &str, time: Range<u64>, status: u16) -> Operation {
    Operation { outcome: Outcome::Fail, status, ..write(value, time) }
}
