//! Families of figures, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, MetricEncoder, NoLabelSet, prometheus_text as text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use terrace_core::Times;

/// One look at all figures.
#[derive(Debug, Default)]
pub(super) struct Page(BTreeMap<String, Family>);

/// All figures of one name.
#[derive(Debug)]
struct Family {
    help: String,
    kind: MetricType,
    figures: Vec<(Labels, Value)>,
}

/// What tells the figures of one name apart: names of the architecture, never of a client or a record.
pub(super) type Labels = Vec<(&'static str, String)>;

/// What a figure is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Value {
    /// Only grows.
    Counter(u64),
    /// Time that only grows.
    TimeCounter(Duration),
    /// Goes up and down.
    Gauge(u64),
    /// A time that goes up and down.
    TimeGauge(Duration),
    /// How long calls took.
    Times(Times),
}

impl Page {
    /// Adds a figure. Names have their unit; that of a counter ends without `_total`, which its text has.
    pub(super) fn add(&mut self, name: &str, help: &str, labels: Labels, value: Value) {
        let family = self.0.entry(name.to_owned()).or_insert_with(|| {
            let (help, figures) = (help.to_owned(), Vec::new());
            Family { help, kind: value.kind(), figures }
        });
        family.figures.push((labels, value));
    }

    /// The text, in the format of [`Page::CONTENT_TYPE`].
    ///
    /// # Errors
    /// None: a `String` takes everything.
    pub(super) fn text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut written = String::new();
        text::encode(&mut written, &registry)?;
        Ok(written)
    }

    /// Every version of Prometheus reads this one, and so do the tools around it.
    pub(super) const CONTENT_TYPE: &str = text::CONTENT_TYPE;
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for (name, family) in &self.0 {
            let mut encoder = encoder.encode_descriptor(name, &family.help, None, family.kind)?;
            for (labels, value) in &family.figures {
                value.encode(encoder.encode_family(labels)?)?;
            }
        }
        Ok(())
    }
}

impl Value {
    fn kind(self) -> MetricType {
        match self {
            Self::Counter(_) | Self::TimeCounter(_) => MetricType::Counter,
            Self::Gauge(_) | Self::TimeGauge(_) => MetricType::Gauge,
            Self::Times(_) => MetricType::Histogram,
        }
    }

    fn encode(self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        match self {
            Self::Counter(count) => encoder.encode_counter::<NoLabelSet, _, u64>(&count, None),
            Self::TimeCounter(time) => {
                encoder.encode_counter::<NoLabelSet, _, u64>(&time.as_secs_f64(), None)
            }
            Self::Gauge(value) => encoder.encode_gauge(&value),
            Self::TimeGauge(time) => encoder.encode_gauge(&time.as_secs_f64()),
            Self::Times(times) => {
                let bounds = Times::BOUNDS.iter().map(Duration::as_secs_f64);
                let bounds = bounds.chain([f64::INFINITY]);
                let buckets = bounds.zip(times.counts).collect::<Vec<_>>();
                let (sum, count) = (times.sum.as_secs_f64(), times.count());
                encoder.encode_histogram::<NoLabelSet>(sum, count, &buckets, None)
            }
        }
    }
}
