//! What a checker says about a history.

use std::fmt;

/// The judgement of one checker.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use = "a verdict that nobody looks at proves nothing"]
pub enum Verdict {
    /// The guarantee held in everything that was looked at.
    Holds {
        /// How many operations could have refuted it. Zero proves nothing.
        looked_at: usize,
    },
    /// The guarantee is refuted.
    Violated(Vec<Violation>),
    /// The checker gave up: this is no pass.
    NotLookedAt(String),
}

/// One refutation: what is wrong, and the operations that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// What is wrong, in one sentence.
    pub what: String,
    /// The operations that show it, as text.
    pub evidence: Vec<String>,
}

impl Violation {
    pub(crate) fn new<'a>(
        what: impl Into<String>,
        evidence: impl IntoIterator<Item = &'a crate::Operation>,
    ) -> Self {
        let evidence = evidence.into_iter().map(ToString::to_string).collect();
        Self { what: what.into(), evidence }
    }
}

impl Verdict {
    pub(crate) fn of(looked_at: usize, violations: Vec<Violation>) -> Self {
        if violations.is_empty() { Self::Holds { looked_at } } else { Self::Violated(violations) }
    }

    /// Whether the guarantee held, and something could have refuted it.
    #[must_use]
    pub fn holds(&self) -> bool {
        matches!(self, Self::Holds { looked_at } if *looked_at > 0)
    }

    /// What refutes the guarantee; empty unless [`Verdict::Violated`].
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        match self {
            Self::Violated(violations) => violations,
            Self::Holds { .. } | Self::NotLookedAt(_) => &[],
        }
    }

    /// Fails the test when the guarantee is refuted; for a check that may have had nothing to look at.
    ///
    /// # Panics
    /// With the first violations, or the reason why nothing was looked at.
    #[track_caller]
    pub fn assert_not_violated(&self) {
        assert!(matches!(self, Self::Holds { .. }), "{self}");
    }

    /// Fails the test unless the guarantee held and something could have refuted it.
    ///
    /// # Panics
    /// With the first violations, or the reason why nothing was looked at.
    #[track_caller]
    pub fn assert_holds(&self) {
        assert!(self.holds(), "{self}");
    }
}

/// How many violations the text shows.
const SHOWN: usize = 3;

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds { looked_at: 0 } => write!(f, "nothing was looked at"),
            Self::Holds { looked_at } => write!(f, "holds in {looked_at} operations"),
            Self::NotLookedAt(reason) => write!(f, "not looked at: {reason}"),
            Self::Violated(violations) => {
                write!(f, "{} violations", violations.len())?;
                for violation in violations.iter().take(SHOWN) {
                    write!(f, "\n- {}", violation.what)?;
                    for operation in &violation.evidence {
                        write!(f, "\n    {operation}")?;
                    }
                }
                Ok(())
            }
        }
    }
}
