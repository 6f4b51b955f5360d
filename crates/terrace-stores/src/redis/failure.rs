//! Why the cache cannot be used, for people and for the decision to give up a connection.

use redis::{ErrorKind as Kind, RedisError, ServerErrorKind as Server};
use terrace_core::{Error, ErrorKind};

/// Why there is no live connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Down {
    Starting,
    Unreachable,
    Silent,
    Credentials,
    Permission,
    Loading,
    Replica,
    Unwritable,
    Cluster,
    TooOld,
    Refused,
    Closed,
}

impl Down {
    /// What is wrong and what is done about it.
    pub(super) fn note(self) -> &'static str {
        match self {
            Self::Starting => "not connected yet; connecting, reads go to the database",
            Self::Unreachable => "cannot be reached; reconnecting, reads go to the database",
            Self::Silent => "did not answer in time; reconnecting, reads go to the database",
            Self::Credentials => {
                "refuses the user name or password; correct them in the Redis URL; reconnecting, \
                 reads go to the database"
            }
            Self::Permission => {
                "its user may not run what the cache needs; grant MGET, GET, SET, GETRANGE, \
                 INCR, PTTL, PEXPIRE, TIME, EVALSHA, SCRIPT, INFO, PUBLISH and SUBSCRIBE; \
                 reconnecting, reads go to the database"
            }
            Self::Loading => "is loading its data; reconnecting, reads go to the database",
            Self::Replica => {
                "is a read-only replica; give the address of the primary; reconnecting, reads go \
                 to the database"
            }
            Self::Unwritable => {
                "refuses writes, or has other memory than a moment ago; reads go to the database \
                 until it takes them; look for MISCONF, NOREPLICAS or a synchronisation in the log \
                 of Redis; reconnecting"
            }
            Self::Cluster => {
                "is a node of a cluster that does not own the cache's keys; give the address of \
                 one that does; reconnecting, reads go to the database"
            }
            Self::TooOld => "is older than Redis 7; upgrade it; reads go to the database",
            Self::Refused => "refused a command; reconnecting, reads go to the database",
            Self::Closed => "closed",
        }
    }

    /// What a refused connection or command says of the server.
    pub(super) fn of(error: &RedisError) -> Self {
        match error.kind() {
            Kind::AuthenticationFailed => Self::Credentials,
            Kind::Io | Kind::Parse if error.is_timeout() => Self::Silent,
            Kind::Io | Kind::Parse => Self::Unreachable,
            Kind::Server(Server::NoPerm) => Self::Permission,
            Kind::Server(Server::BusyLoading) => Self::Loading,
            Kind::Server(Server::ReadOnly | Server::MasterDown) => Self::Replica,
            Kind::Server(Server::Moved | Server::Ask | Server::ClusterDown | Server::CrossSlot) => {
                Self::Cluster
            }
            _ if matches!(error.code(), Some("NOAUTH" | "WRONGPASS")) => Self::Credentials,
            _ if matches!(error.code(), Some("MISCONF" | "NOREPLICAS")) => Self::Unwritable,
            _ => Self::Refused,
        }
    }

    /// Whether a connection that answered so is of no more use. Errors of single commands (a full
    /// memory) are not.
    pub(super) fn ends_connection(self) -> bool {
        self != Self::Refused && self != Self::Permission
    }

    /// Whether invalidations that this server should have taken may be missing from what it will
    /// answer when it is well again.
    pub(super) fn leaves_doubt(self) -> bool {
        self == Self::Unwritable || self == Self::Replica
    }

    pub(super) fn error(self) -> Error {
        let message = match self {
            Self::Closed => "the cache is closed",
            _ => "the cache cannot be reached; try again",
        };
        Error::new(ErrorKind::Unavailable, message)
            .with("cache", "redis")
            .with("state", self.note())
    }
}
