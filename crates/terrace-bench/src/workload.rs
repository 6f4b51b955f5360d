//! What is asked: the mix of operations, the keys, the sizes of values.

use std::fmt;

use rand::{Rng, RngExt as _};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::keys::Distribution;

/// One thing that a client does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Operation {
    /// Reads a key.
    Read,
    /// Overwrites a key that exists.
    Update,
    /// Writes a key that is new.
    Insert,
    /// Reads up to a hundred neighbours.
    Scan,
    /// Reads a key, then overwrites it; one latency for both.
    ReadModifyWrite,
    /// Adds a transaction to a user.
    Post,
    /// Reads a user's latest transactions.
    Statement,
}

impl Operation {
    /// All of them, in the order of [`Operation`].
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Update,
        Self::Insert,
        Self::Scan,
        Self::ReadModifyWrite,
        Self::Post,
        Self::Statement,
    ];

    /// The name for people and files.
    pub fn as_str(self) -> &'static str {
        ["read", "update", "insert", "scan", "read-modify-write", "post", "statement"]
            [self as usize]
    }
}

/// Percent of each operation, in the order of [`Operation::ALL`]; together 100.
pub type Percent = [f64; Operation::ALL.len()];

/// A mix of operations over keys.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Workload {
    /// What it is called.
    pub name: String,
    /// How often each operation is drawn.
    #[serde(deserialize_with = "percent")]
    pub percent: Percent,
    /// Which keys.
    pub distribution: Distribution,
}

/// In a report of an earlier version the operations that came later are missing.
fn percent<'de, D: Deserializer<'de>>(reader: D) -> Result<Percent, D::Error> {
    let known = Vec::<f64>::deserialize(reader)?;
    let mut percent = Percent::default();
    let Some(first) = percent.get_mut(..known.len()) else {
        return Err(D::Error::custom("it has operations that this Terrace does not know"));
    };
    first.copy_from_slice(&known);
    Ok(percent)
}

/// The workloads that have a name: the documents' mix, YCSB's six, and one of documents and transactions.
const PRESETS: [(&str, Percent, Distribution); 8] = [
    ("seed", [70.0, 30.0, 0.0, 0.0, 0.0, 0.0, 0.0], Distribution::Zipfian),
    ("ycsb-a", [50.0, 50.0, 0.0, 0.0, 0.0, 0.0, 0.0], Distribution::Zipfian),
    ("ycsb-b", [95.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.0], Distribution::Zipfian),
    ("ycsb-c", [100.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], Distribution::Zipfian),
    ("ycsb-d", [95.0, 0.0, 5.0, 0.0, 0.0, 0.0, 0.0], Distribution::Latest),
    ("ycsb-e", [0.0, 0.0, 5.0, 95.0, 0.0, 0.0, 0.0], Distribution::Zipfian),
    ("ycsb-f", [50.0, 0.0, 0.0, 0.0, 50.0, 0.0, 0.0], Distribution::Zipfian),
    ("polyglot", [50.0, 20.0, 0.0, 0.0, 0.0, 20.0, 10.0], Distribution::Uniform),
];

/// Why a workload cannot be used.
#[derive(Debug, PartialEq, Eq)]
pub struct BadWorkload(String);

impl fmt::Display for BadWorkload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for BadWorkload {}

/// The keys of a workload file.
const FILE_KEYS: [&str; 9] = [
    "name",
    "distribution",
    "read",
    "update",
    "insert",
    "scan",
    "read-modify-write",
    "post",
    "statement",
];

impl Workload {
    /// The names of the presets.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|(name, _, _)| *name)
    }

    /// The preset of this name.
    pub fn named(name: &str) -> Option<Self> {
        let (name, percent, distribution) = *PRESETS.iter().find(|preset| preset.0 == name)?;
        Some(Self { name: name.to_owned(), percent, distribution })
    }

    /// A workload of one's own, in TOML: `name`, `distribution` (default `zipfian`), and percent of
    /// `read`, `update`, `insert`, `scan`, `read-modify-write`, `post`, `statement` that add up to 100.
    ///
    /// # Errors
    /// An unknown key, with the nearest known one; a wrong type; percents that do not add up.
    pub fn from_toml(text: &str) -> Result<Self, BadWorkload> {
        let table: toml::Table = text
            .parse()
            .map_err(|error: toml::de::Error| BadWorkload(error.to_string().trim().to_owned()))?;
        if let Some(unknown) = table.keys().find(|key| !FILE_KEYS.contains(&key.as_str())) {
            return Err(BadWorkload(format!(
                "unknown key `{unknown}`{}",
                hint(unknown, FILE_KEYS.iter().copied())
            )));
        }
        let word = |key: &str, otherwise: &str| match table.get(key) {
            None => Ok(otherwise.to_owned()),
            Some(toml::Value::String(text)) => Ok(text.clone()),
            Some(_) => Err(BadWorkload(format!("`{key}` must be a text in quotes"))),
        };
        let named = word("distribution", "zipfian")?;
        let distribution = Distribution::named(&named).ok_or_else(|| {
            BadWorkload(format!(
                "unknown distribution `{named}`{}",
                hint(&named, Distribution::NAMES.into_iter())
            ))
        })?;
        let mut percent = Percent::default();
        for (share, operation) in percent.iter_mut().zip(Operation::ALL) {
            *share = percentage(&table, operation.as_str())?;
        }
        let sum: f64 = percent.iter().sum();
        if (sum - 100.0).abs() > 0.01 {
            return Err(BadWorkload(format!("the operations add up to {sum} percent, not 100")));
        }
        Ok(Self { name: word("name", "own")?, percent, distribution })
    }

    /// Draws the next operation.
    pub fn draw(&self, rng: &mut impl Rng) -> Operation {
        let mut left = rng.random_range(0.0..100.0);
        for (operation, percent) in Operation::ALL.into_iter().zip(self.percent) {
            if left < percent {
                return operation;
            }
            left -= percent;
        }
        // Rounding may leave a sliver above the last share.
        Operation::ALL
            .into_iter()
            .zip(self.percent)
            .find_map(|(operation, percent)| (percent > 0.0).then_some(operation))
            .unwrap_or(Operation::Read)
    }

    /// Whether it has this operation.
    pub fn has(&self, operation: Operation) -> bool {
        self.percent[operation as usize] > 0.0
    }

    /// "70 % read, 30 % update".
    pub fn describe(&self) -> String {
        let parts = Operation::ALL.into_iter().zip(self.percent).filter(|part| part.1 > 0.0);
        let parts: Vec<_> = parts
            .map(|(operation, percent)| format!("{percent} % {}", operation.as_str()))
            .collect();
        parts.join(", ")
    }
}

fn percentage(table: &toml::Table, key: &str) -> Result<f64, BadWorkload> {
    #[expect(clippy::cast_precision_loss, reason = "a percentage is small, or refused below")]
    let value = match table.get(key) {
        None => 0.0,
        Some(toml::Value::Integer(whole)) => *whole as f64,
        Some(toml::Value::Float(number)) => *number,
        Some(_) => return Err(BadWorkload(format!("`{key}` must be a number of percent"))),
    };
    match (0.0..=100.0).contains(&value) {
        true => Ok(value),
        false => Err(BadWorkload(format!("`{key}` must be between 0 and 100 percent"))),
    }
}

/// "; did you mean `read`?" when something known is near, else what there is.
pub fn hint<'a>(word: &str, known: impl Iterator<Item = &'a str> + Clone) -> String {
    let nearest = known
        .clone()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| *distance <= candidate.len() / 2);
    match nearest {
        Some((_, candidate)) => format!("; did you mean `{candidate}`?"),
        None => format!("; there is {}", known.collect::<Vec<_>>().join(", ")),
    }
}

/// How long values are: each length from the first to the last as often as the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueBytes {
    /// The shortest. A value that names its write needs about 20 bytes whatever is asked for.
    pub from: usize,
    /// The longest.
    pub to: usize,
}

impl ValueBytes {
    /// Draws a length.
    pub fn draw(self, rng: &mut impl Rng) -> usize {
        if self.from == self.to { self.from } else { rng.random_range(self.from..=self.to) }
    }
}

impl fmt::Display for ValueBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from == self.to {
            true => write!(f, "{}", self.from),
            false => write!(f, "{}-{}", self.from, self.to),
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    #[test]
    fn operations_are_drawn_as_often_as_the_mix_says() {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
        for name in Workload::names() {
            let workload = Workload::named(name).unwrap();
            assert!((workload.percent.iter().sum::<f64>() - 100.0).abs() < 1e-9, "{name}");
            let mut counts = Percent::default();
            for _ in 0..20_000 {
                counts[workload.draw(&mut rng) as usize] += 100.0 / 20_000.0;
            }
            for (count, percent) in counts.iter().zip(workload.percent) {
                assert!((count - percent).abs() < 2.0, "{name}: {counts:?}");
            }
        }
    }

    #[test]
    fn a_file_is_read_or_refused_with_what_to_do() {
        let own = Workload::from_toml("name = \"mine\"\nread = 90\nstatement = 10.0").unwrap();
        assert_eq!(own.describe(), "90 % read, 10 % statement");
        assert_eq!((own.name.as_str(), own.distribution), ("mine", Distribution::Zipfian));
        for (text, wanted) in [
            ("raed = 100", "unknown key `raed`; did you mean `read`?"),
            ("whatever = 1", "unknown key `whatever`; there is name, distribution"),
            ("read = 60\nupdate = 30", "add up to 90 percent"),
            ("read = \"all\"", "`read` must be a number"),
            ("read = 120", "between 0 and 100"),
            ("read = 100\ndistribution = \"zipf\"", "did you mean `zipfian`?"),
            ("read = ", "TOML parse error"),
        ] {
            let error = Workload::from_toml(text).unwrap_err().to_string();
            assert!(error.contains(wanted), "{text}: {error}");
        }
    }

    #[test]
    fn a_workload_of_an_earlier_report_is_read() {
        let now = serde_json::to_string(&Workload::named("seed").unwrap()).unwrap();
        let earlier = now.replace("30.0,0.0,0.0,0.0,0.0,0.0", "30.0,0.0,0.0,0.0");
        assert_ne!(earlier, now);
        assert_eq!(serde_json::from_str::<Workload>(&earlier).ok(), Workload::named("seed"));
        let later = now.replace("30.0,", "30.0,0.0,");
        let refused = serde_json::from_str::<Workload>(&later).unwrap_err().to_string();
        assert!(refused.contains("does not know"), "{refused}");
    }
}
