//! Why a Redis server says no: the same words for the cache, the journal and the stream of events.

use redis::{ErrorKind as Kind, RedisError};

use super::servers::{Distrust, Lost, made_here};

/// What a server's refusal says of it, or of its user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `NOAUTH`, `WRONGPASS`.
    Credentials,
    /// `NOPERM` for a command.
    Command,
    /// `NOPERM` for a key.
    Key,
    /// `NOPERM` for a channel.
    Channel,
    /// `LOADING`.
    Loading,
    /// `READONLY`, `MASTERDOWN`.
    Replica,
    /// `MISCONF`.
    CannotSave,
    /// `NOREPLICAS`.
    TooFewReplicas,
    /// `OOM`.
    Full,
    /// `BUSY`.
    Busy,
    /// `MOVED`, `ASK`, `TRYAGAIN`, `CLUSTERDOWN`, `CROSSSLOT`.
    Cluster,
    /// TLS did not come about, on this side or that.
    Distrusted(Distrust),
    /// There is no server to connect to, as those say who should know.
    Lost(Lost),
    /// Anything else.
    Other,
}

/// What the user of a connection needs, as its `ACL` would grant it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Needs<'a> {
    /// A pattern.
    pub(crate) keys: &'a str,
    /// A channel; empty where none is used.
    pub(crate) channel: &'a str,
    /// Names, as people write them.
    pub(crate) commands: &'a str,
}

impl Refusal {
    /// `None` where the server has said nothing, as when the network fails.
    pub(crate) fn of(error: &RedisError) -> Option<Self> {
        if error.kind() == Kind::AuthenticationFailed {
            return Some(Self::Credentials);
        }
        if let Some(distrust) = made_here::<Distrust>(error) {
            return Some(Self::Distrusted(distrust));
        }
        if let Some(lost) = made_here::<Lost>(error) {
            return Some(Self::Lost(lost));
        }
        // A transaction is refused for what one of its commands was refused for.
        let errors = error.clone().into_server_errors()?;
        Some(
            errors
                .first()
                .map_or(Self::Other, |(_, error)| Self::from(error.code(), error.details())),
        )
    }

    fn from(code: &str, detail: Option<&str>) -> Self {
        let says = |words: &str| detail.is_some_and(|detail| detail.contains(words));
        match code {
            "NOAUTH" | "WRONGPASS" => Self::Credentials,
            // Within a script the reason has no code of its own.
            _ if says("one of the keys") || says("one of the key") => Self::Key,
            _ if says("one of the channels") || says("publish to the channel") => Self::Channel,
            "NOPERM" => Self::Command,
            _ if says("run this command") => Self::Command,
            "LOADING" => Self::Loading,
            "READONLY" | "MASTERDOWN" => Self::Replica,
            "MISCONF" => Self::CannotSave,
            "NOREPLICAS" => Self::TooFewReplicas,
            "OOM" => Self::Full,
            "BUSY" => Self::Busy,
            "MOVED" | "ASK" | "TRYAGAIN" | "CLUSTERDOWN" | "CROSSSLOT" => Self::Cluster,
            _ => Self::Other,
        }
    }

    /// Whether the server still answers reads, and will take writes when its trouble is over.
    pub(crate) fn is_of_writes(self) -> bool {
        matches!(self, Self::CannotSave | Self::TooFewReplicas | Self::Full)
    }

    /// What is wrong with the server, and what to do next.
    pub(crate) fn says(self, needs: Needs<'_>) -> String {
        let Needs { keys, channel, commands } = needs;
        let text = match self {
            Self::Credentials => "refuses the user name or password; correct them in its URL",
            Self::Command => {
                return format!("does not let its user run what is needed (ACL); grant {commands}");
            }
            Self::Key => {
                return format!(
                    "does not let its user use the keys `{keys}` (ACL); grant `~{keys}`"
                );
            }
            Self::Channel => {
                return format!(
                    "does not let its user use the channel `{channel}` (ACL); grant `&{channel}`"
                );
            }
            Self::Loading => "is loading its data (LOADING); wait until it has",
            Self::Replica => {
                "is a replica, and takes no writes (READONLY); give the address of the primary"
            }
            Self::CannotSave => {
                "cannot save to its disk and refuses writes (MISCONF); look for the reason in its log"
            }
            Self::TooFewReplicas => {
                "has too few replicas and refuses writes (NOREPLICAS); bring them back, or lower \
                 min-replicas-to-write"
            }
            Self::Full => {
                "has no memory left and refuses writes (OOM); raise its maxmemory, or remove what it \
                 keeps for others"
            }
            Self::Busy => "is busy with a script of somebody (BUSY); end it with SCRIPT KILL",
            Self::Cluster => {
                "is a node of a cluster that does not own the keys, or gives them away just now; write \
                 redis+cluster:// with the addresses of its nodes, or wait until they are moved"
            }
            Self::Distrusted(distrust) => distrust.says(),
            Self::Lost(lost) => lost.says(),
            Self::Other => "refuses a command; look into its log",
        };
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Redis 7 words them.
    #[test]
    fn every_refusal_has_its_reason() {
        let known = |words: &str| {
            let value = redis::parse_redis_value(format!("-{words}\r\n").as_bytes()).unwrap();
            Refusal::of(&value.extract_error().unwrap_err())
        };
        let script = "The user executing the script can't";
        for (words, refusal) in [
            ("NOAUTH Authentication required.", Refusal::Credentials),
            ("WRONGPASS invalid username-password pair or user is disabled.", Refusal::Credentials),
            ("NOPERM this user has no permissions to run the 'xadd' command", Refusal::Command),
            (
                "NOPERM this user has no permissions to access one of the keys used as arguments",
                Refusal::Key,
            ),
            (
                "NOPERM this user has no permissions to access one of the channels used as arguments",
                Refusal::Channel,
            ),
            (
                &format!("ERR {script} publish to the channel mentioned in the command script: 1"),
                Refusal::Channel,
            ),
            (&format!("ERR {script} run this command or subcommand script: 1"), Refusal::Command),
            (
                &format!("ERR {script} access at least one of the keys mentioned script: 1"),
                Refusal::Key,
            ),
            ("LOADING Redis is loading the dataset in memory", Refusal::Loading),
            ("READONLY You can't write against a read only replica.", Refusal::Replica),
            ("MASTERDOWN Link with MASTER is down", Refusal::Replica),
            ("MISCONF Redis is configured to save RDB snapshots", Refusal::CannotSave),
            ("NOREPLICAS Not enough good replicas to write.", Refusal::TooFewReplicas),
            ("OOM command not allowed when used memory > 'maxmemory'.", Refusal::Full),
            ("BUSY Redis is busy running a script.", Refusal::Busy),
            ("CLUSTERDOWN The cluster is down", Refusal::Cluster),
            ("ERR unknown command", Refusal::Other),
        ] {
            assert_eq!(known(words), Some(refusal), "{words}");
        }
        let silent = std::io::Error::from(std::io::ErrorKind::ConnectionReset).into();
        assert_eq!(Refusal::of(&silent), None);
    }
}
