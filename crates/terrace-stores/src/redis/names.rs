//! The names of everything that one cache keeps in Redis.

use redis::{Cmd, RedisWrite as _};
use std::io::Write as _;

use terrace_core::{Error, Key, Result};

/// The keys and the channel of one namespace.
///
/// All begin with the namespace in braces, which Redis Cluster takes for the part to hash: one
/// namespace lives whole on one node, so its scripts and its `MGET` stay legal there. Spreading a
/// cache over a cluster then means several namespaces, each with its own epoch and its own numbers.
#[derive(Clone, Debug)]
pub(super) struct Names {
    /// Holds the epoch in force, the run id of the server process that it began in, and since when the
    /// memory is whole, in 20 digits of milliseconds.
    pub(super) epoch: String,
    /// Holds how many messages were published.
    pub(super) number: String,
    /// The channel of the messages.
    pub(super) channel: String,
    /// What heartbeats write.
    pub(super) beat: String,
    entries: String,
}

impl Names {
    pub(super) fn new(namespace: &str) -> Result<Self> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
        if namespace.is_empty() || namespace.len() > 64 || !namespace.bytes().all(allowed) {
            return Err(Error::invalid(
                "the cache's namespace must have 1 to 64 letters, digits or - _ . : /",
            ));
        }
        Ok(Self {
            epoch: format!("{{{namespace}}}:epoch"),
            number: format!("{{{namespace}}}:number"),
            channel: format!("{{{namespace}}}:invalidations"),
            beat: format!("{{{namespace}}}:beat"),
            entries: format!("{{{namespace}}}:entry:"),
        })
    }

    /// What all keys match, as an `ACL` has it.
    pub(super) fn pattern(&self) -> String {
        let (begin, _) = self.epoch.rsplit_once(':').unwrap_or_default();
        format!("{begin}:*")
    }

    /// What the names of all entries match.
    pub(super) fn entries_pattern(&self) -> String {
        format!("{}*", self.entries)
    }

    /// Adds the name of a key's entry to a command, without a string in between.
    pub(super) fn write_entry(&self, command: &mut Cmd, key: &Key) {
        let mut argument = command.writer_for_next_arg();
        // Both go to memory, which does not fail.
        let _ = argument.write_all(self.entries.as_bytes());
        let _ = argument.write_all(key.as_str().as_bytes());
    }

    /// How many bytes the name of this key's entry has.
    pub(super) fn entry_len(&self, key: &Key) -> usize {
        self.entries.len() + key.as_str().len()
    }
}
