//! Which clients a canary serves.

use std::fmt;
use std::str::FromStr;

use sha2::{Digest as _, Sha256};

/// The share of clients that a canary serves: none, or from 0.1 to 50 in a hundred.
///
/// A client is in it by a digest of its name alone, so every instance, and every start, sorts it in the same
/// way. Whoever is in a share is also in every larger one.
///
/// ```
/// # use terrace::http::ClientShare;
/// assert_eq!("2.5".parse::<ClientShare>().map(|share| share.to_string()), Ok("2.5".to_owned()));
/// assert!("60".parse::<ClientShare>().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientShare {
    per_mille: u16,
}

impl ClientShare {
    /// No client.
    pub const NONE: Self = Self { per_mille: 0 };

    /// In a thousand.
    pub(super) fn per_mille(self) -> u16 {
        self.per_mille
    }

    /// Whether the client of this name is in it.
    pub(super) fn has(self, client: &str) -> bool {
        // Of its own, so that it says nothing about other places that sort by a digest of the same name.
        let digest = Sha256::new().chain_update("terrace canary ").chain_update(client).finalize();
        let first = digest[..8].iter().fold(0, |all, byte| (all << 8) | u64::from(*byte));
        first % 1000 < u64::from(self.per_mille)
    }
}

impl FromStr for ClientShare {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (whole, tenths) = text.split_once('.').unwrap_or((text, "0"));
        let number = |text: &str| text.parse::<u16>().ok().filter(|_| !text.starts_with('+'));
        let per_mille = match (number(whole), number(tenths), tenths.len()) {
            (Some(whole), Some(tenths), 1) => whole.checked_mul(10).map(|it| it + tenths),
            _ => None,
        };
        let per_mille = per_mille.filter(|it| *it <= 500);
        per_mille.map(|per_mille| Self { per_mille }).ok_or_else(|| {
            "give a percentage from 0.1 to 50, with one decimal at most; or 0 to compare reads alone".into()
        })
    }
}

impl fmt::Display for ClientShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.per_mille / 10, self.per_mille % 10) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, tenths) => write!(f, "{whole}.{tenths}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(text: &str) -> ClientShare {
        text.parse().expect("a share")
    }

    #[test]
    fn a_share_is_zero_or_a_tenth_to_fifty_percent() {
        for (text, shown) in
            [("5", "5"), ("0", "0"), ("0.1", "0.1"), ("12.5", "12.5"), ("50.0", "50")]
        {
            assert_eq!(share(text).to_string(), shown);
        }
        for wrong in ["50.1", "100", "-1", "+5", "5%", "0.05", "", ".", "5.", ".5", "1e1", "7000"] {
            assert!(wrong.parse::<ClientShare>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_client_is_in_a_share_by_its_name_alone_and_stays_in_it_as_it_grows() {
        let clients = (0..10_000).map(|number| format!("address:10.0.0.{number}"));
        let clients = clients.collect::<Vec<_>>();
        let count = |share: ClientShare| clients.iter().filter(|it| share.has(it)).count();
        assert_eq!(count(ClientShare::NONE), 0);
        let (small, large) = (share("5"), share("50"));
        assert!((400..600).contains(&count(small)), "{}", count(small));
        assert!((4_800..5_200).contains(&count(large)), "{}", count(large));
        assert!(clients.iter().all(|it| !small.has(it) || large.has(it)));
        // Of these names, as they are for every instance and every build.
        let known = ["key:a", "key:b", "key:c", "key:d"].map(|it| large.has(it));
        assert_eq!(known, KNOWN);
    }

    const KNOWN: [bool; 4] = [true, false, true, true];
}
