//! One operation of one client.

use std::fmt;
use std::time::Duration;

use serde::Serialize;

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub enum Action {
    /// The value of a key.
    Read,
    /// A new value for a key. Each write of a history has a value of its own, which identifies it.
    Write(String),
    /// No value for a key.
    Delete,
}

/// What a write or a delete demanded of the record that it replaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Condition {
    /// `If-Match: "<version>"`.
    IfVersion(u64),
    /// `If-None-Match: *`.
    IfMissing,
}

/// How fresh a read was asked to be.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Consistency {
    /// What the level promises.
    #[default]
    Default,
    /// `strong`.
    Strong,
    /// `max-stale=<ms>`.
    MaxStale(Duration),
}

/// What the client knows afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Outcome {
    /// Answered with success; a read of a missing key is a success, too.
    Ok,
    /// Refused: nothing was changed.
    Fail,
    /// Nobody knows whether it took effect, or when it will.
    Unknown,
}

/// One operation. Times are counted from the start of the history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Operation {
    /// When the client sent it.
    pub invoked: Duration,
    /// When the client had the answer, or gave up.
    pub ended: Duration,
    /// Which instance was asked.
    pub instance: String,
    /// The key of the record.
    pub key: String,
    /// What was asked for.
    pub action: Action,
    /// A condition of a write or delete.
    pub condition: Option<Condition>,
    /// `Idempotency-Key` of a write or delete.
    pub idempotency_key: Option<String>,
    /// How fresh a read was asked to be.
    pub consistency: Consistency,
    /// `Terrace-Token` headers of the request, in their order.
    pub tokens_sent: Vec<String>,
    /// `Terrace-Token` of the answer.
    pub token_received: Option<String>,
    /// What the client knows afterwards.
    pub outcome: Outcome,
    /// The status of the answer; 0 when there was none.
    pub status: u16,
    /// The value that a read found; `None` when the key was missing.
    pub found: Option<String>,
    /// The version that was read or written.
    pub version: Option<u64>,
    /// `Terrace-Origin`.
    pub origin: Option<String>,
    /// `Age`.
    pub age: Option<Duration>,
    /// `Terrace-Durability` of a change.
    pub durability: Option<String>,
}

impl Operation {
    /// A request that nobody has answered.
    #[must_use]
    pub fn sent(instance: &str, key: &str, action: Action) -> Self {
        Self {
            invoked: Duration::ZERO,
            ended: Duration::MAX,
            instance: instance.to_owned(),
            key: key.to_owned(),
            action,
            condition: None,
            idempotency_key: None,
            consistency: Consistency::Default,
            tokens_sent: Vec::new(),
            token_received: None,
            outcome: Outcome::Unknown,
            status: 0,
            found: None,
            version: None,
            origin: None,
            age: None,
            durability: None,
        }
    }

    /// Whether it changes the key when it takes effect.
    #[must_use]
    pub fn changes(&self) -> bool {
        self.action != Action::Read
    }

    /// Whether it is a read that was answered.
    #[must_use]
    pub fn has_read(&self) -> bool {
        self.action == Action::Read && self.outcome == Outcome::Ok
    }

    /// Whether it is a change that was acknowledged.
    #[must_use]
    pub fn is_acknowledged(&self) -> bool {
        self.changes() && self.outcome == Outcome::Ok
    }

    /// The content of the key that this operation saw or made: a value, or none.
    #[must_use]
    pub fn content(&self) -> Option<&str> {
        match &self.action {
            Action::Read => self.found.as_deref(),
            Action::Write(value) => Some(value),
            Action::Delete => None,
        }
    }

    /// When a change had certainly taken effect or never will; `None` when nobody knows.
    #[must_use]
    pub fn settled(&self) -> Option<Duration> {
        (self.outcome != Outcome::Unknown).then_some(self.ended)
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { invoked, ended, instance, key, .. } = self;
        write!(f, "[{:.3}", invoked.as_secs_f64())?;
        match *ended {
            Duration::MAX => write!(f, "..?]")?,
            ended => write!(f, "..{:.3}]", ended.as_secs_f64())?,
        }
        write!(f, " {instance} ")?;
        match &self.action {
            Action::Read => write!(f, "read {key} = {:?}", self.found)?,
            Action::Write(value) => write!(f, "write {key} = {value:?}")?,
            Action::Delete => write!(f, "delete {key}")?,
        }
        write!(f, ", {:?} {}", self.outcome, self.status)?;
        if let Some(version) = self.version {
            write!(f, ", version {version}")?;
        }
        if let Some(origin) = &self.origin {
            write!(f, ", {origin}")?;
        }
        if let Some(durability) = &self.durability {
            write!(f, ", {durability}")?;
        }
        if let Some(age) = self.age {
            write!(f, ", age {} s", age.as_secs())?;
        }
        if !self.tokens_sent.is_empty() {
            write!(f, ", with a token")?;
        }
        Ok(())
    }
}
