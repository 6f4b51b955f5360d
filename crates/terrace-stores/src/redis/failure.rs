//! Why the cache cannot be used, for people and for the decision to give up a connection.

use redis::{ErrorKind as Kind, RedisError};
use terrace_core::{Error, ErrorKind};

use super::names::Names;
use super::refusal::{Needs, Refusal};

/// Why there is no live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Down {
    Starting,
    Unreachable,
    Silent,
    Unwritable,
    Replaced,
    TooOld,
    Refused(Refusal),
    Closed,
}

impl Down {
    /// What is wrong and what is done about it.
    pub(super) fn note(self, names: &Names) -> String {
        const COMMANDS: &str = "MGET, GET, SET, GETRANGE, INCR, PTTL, PEXPIRE, TIME, EVALSHA, SCRIPT, \
                                INFO, PUBLISH and SUBSCRIBE";
        let text = match self {
            Self::Starting => "not connected yet; connecting, reads go to the database",
            Self::Unreachable => "cannot be reached; reconnecting, reads go to the database",
            Self::Silent => "did not answer in time; reconnecting, reads go to the database",
            Self::Unwritable => {
                "refuses writes, or has other memory than a moment ago; reads go to the database \
                 until it takes them; look for a synchronisation in the log of Redis; reconnecting"
            }
            Self::Replaced => {
                "was left for another server; connecting to that one, reads go to the database"
            }
            Self::TooOld => "is older than Redis 7; upgrade it; reads go to the database",
            Self::Refused(refusal) => {
                let (keys, channel) = (names.pattern(), names.channel.as_str());
                let says = refusal.says(Needs { keys: &keys, channel, commands: COMMANDS });
                return format!("{says}; reconnecting, reads go to the database");
            }
            Self::Closed => "closed",
        };
        text.to_owned()
    }

    /// What a refused connection or command says of the server.
    pub(super) fn of(error: &RedisError) -> Self {
        match Refusal::of(error) {
            Some(refusal) => Self::Refused(refusal),
            None if !matches!(error.kind(), Kind::Io | Kind::Parse) => {
                Self::Refused(Refusal::Other)
            }
            None if error.is_timeout() => Self::Silent,
            None => Self::Unreachable,
        }
    }

    /// Whether a connection that answered so is of no more use. Errors of single commands (a full
    /// memory) are not.
    pub(super) fn ends_connection(self) -> bool {
        use Refusal::{Busy, Channel, Command, Full, Key, Other};
        !matches!(self, Self::Refused(Busy | Channel | Command | Full | Key | Other))
    }

    /// Whether invalidations that this server should have taken may be missing from what it will
    /// answer when it is well again.
    pub(super) fn leaves_doubt(self) -> bool {
        use Refusal::{CannotSave, Replica, TooFewReplicas};
        matches!(
            self,
            Self::Unwritable
                | Self::Replaced
                | Self::Refused(CannotSave | Replica | TooFewReplicas)
        )
    }

    pub(super) fn error(self) -> Error {
        let message = match self {
            Self::Closed => "the cache is closed",
            _ => "the cache cannot be reached; try again",
        };
        Error::new(ErrorKind::Unavailable, message)
            .with("cache", "redis")
            .with("state", format!("{self:?}"))
    }
}
