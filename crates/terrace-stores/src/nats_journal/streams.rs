//! The streams and their consumer: made where they are missing, and looked at for what would lose
//! accepted writes.

use std::time::Duration;

use async_nats::jetstream::consumer::{AckPolicy, Consumer, pull};
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, RetentionPolicy, StorageType, Stream};
use terrace_core::{Idempotency, Result};

use super::link::{CONSUMER, Link, failed};

pub(super) struct Streams {
    pub(super) entries: Stream,
    pub(super) kept: Stream,
    pub(super) requests: Stream,
    pub(super) consumer: Consumer<pull::Config>,
}

const DAY: Duration = Idempotency::KEPT_FOR;

impl Link {
    /// What is missing of it is made, also after somebody has removed it or the server has lost it.
    pub(super) async fn make(&self) -> Result<Streams> {
        let [entries, kept, requests] = self.configs();
        let entries = self.stream(entries).await?;
        let kept = self.stream(kept).await?;
        let requests = self.stream(requests).await?;
        let made = entries.get_or_create_consumer(CONSUMER, self.consumer());
        let consumer = made.await.map_err(failed)?;
        Ok(Streams { entries, kept, requests, consumer })
    }

    async fn stream(&self, config: Config) -> Result<Stream> {
        match self.context.get_stream(&config.name).await {
            Ok(stream) => return Ok(stream),
            Err(error) => match error.kind() {
                GetStreamErrorKind::JetStream(error) if error.code() == 404 => {}
                _ => return Err(failed(error)),
            },
        }
        if self.streams.initialized() {
            tracing::error!(
                stream = config.name,
                "a stream of the journal was removed from NATS, and what it kept is lost; it is made \
                 again"
            );
        }
        self.context.get_or_create_stream(config).await.map_err(failed)
    }

    /// Of the entries, of what is kept beside them, and of requests.
    fn configs(&self) -> [Config; 3] {
        let name = &self.options.namespace;
        let config = |name: String| Config {
            subjects: vec![format!("{name}.>")],
            name,
            storage: StorageType::File,
            num_replicas: self.options.replicas.max(1),
            ..Config::default()
        };
        let entries = Config {
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            duplicate_window: DAY,
            ..config(name.clone())
        };
        let kept = Config { max_messages_per_subject: 1, ..config(format!("{name}_kept")) };
        let requests = Config {
            max_messages_per_subject: 1,
            max_age: DAY,
            ..config(format!("{name}_requests"))
        };
        [entries, kept, requests]
    }

    pub(super) fn consumer(&self) -> pull::Config {
        pull::Config {
            durable_name: Some(CONSUMER.to_owned()),
            ack_policy: AckPolicy::Explicit,
            ack_wait: self.options.takeover,
            max_ack_pending: 100_000,
            ..pull::Config::default()
        }
    }

    /// What is wrong with the settings of the streams, and what to do; nothing where they keep all.
    pub(super) fn loses(&self, streams: &Streams) -> Option<String> {
        let found = [&streams.entries, &streams.kept, &streams.requests];
        let found = found.map(|stream| &stream.cached_info().config);
        let wanted = self.configs();
        let mut wrong = found.into_iter().zip(&wanted).filter_map(|(found, wanted)| {
            let losing = losing(found, wanted);
            (!losing.is_empty()).then(|| format!("`{}`: {}", found.name, losing.join(", ")))
        });
        let first = wrong.next()?;
        let all = wrong.fold(first, |all, one| format!("{all}; {one}"));
        Some(format!(
            "the journal takes nothing, since its streams in NATS are set to lose accepted writes, and \
             may have lost some: set back {all}"
        ))
    }
}

/// The settings by which a stream loses what it should keep, each with its right value.
fn losing(found: &Config, wanted: &Config) -> Vec<String> {
    let drops = found.discard == DiscardPolicy::Old;
    let keeps = wanted.max_age;
    let is_short = !found.max_age.is_zero() && (keeps.is_zero() || found.max_age < keeps);
    let of_subject = found.max_messages_per_subject;
    let drops_of_subject = drops || !found.discard_new_per_subject;
    let wrong = [
        (is_short, format!("max_age ({}s)", keeps.as_secs())),
        (drops && found.max_messages > 0, "max_msgs (-1)".to_owned()),
        (drops && found.max_bytes > 0, "max_bytes (-1)".to_owned()),
        (
            drops_of_subject && of_subject > 0 && of_subject != wanted.max_messages_per_subject,
            "max_msgs_per_subject (-1)".to_owned(),
        ),
        (found.retention != wanted.retention, "retention (workqueue)".to_owned()),
        (found.storage != wanted.storage, "storage (file)".to_owned()),
        (
            found.duplicate_window < wanted.duplicate_window,
            format!("duplicate_window ({}s)", wanted.duplicate_window.as_secs()),
        ),
    ];
    wrong.into_iter().filter(|(is_wrong, _)| *is_wrong).map(|(_, setting)| setting).collect()
}
