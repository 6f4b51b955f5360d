//! Which key comes next.

use rand::{Rng, RngExt as _};
use rand_distr::{Distribution as _, Zipf};
use serde::{Deserialize, Serialize};

/// The exponent of YCSB's zipfian distribution (Cooper et al., "Benchmarking cloud serving systems
/// with YCSB", SoCC 2010).
pub const THETA: f64 = 0.99;

/// How often each key is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    /// The k-th most wanted key is asked for in proportion to 1 / k^0.99; which keys these are is
    /// scattered over the key space.
    Zipfian,
    /// Every key as often as every other.
    Uniform,
    /// Zipfian, the newest key most wanted.
    Latest,
}

impl Distribution {
    /// The words on the command line.
    pub const NAMES: [&str; 3] = ["zipfian", "uniform", "latest"];

    /// The distribution of this name.
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Zipfian, Self::Uniform, Self::Latest];
        Self::NAMES.iter().position(|known| *known == name).map(|at| all[at])
    }

    /// The word on the command line.
    pub fn as_str(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

/// The text of a key: of one width, so that a prefix names a range of neighbours.
pub fn text(key: u32) -> String {
    let mut text = Vec::new();
    write(&mut text, key);
    String::from_utf8_lossy(&text).into_owned()
}

/// Appends the text of a key. By hand, because it is done for every request.
pub fn write(into: &mut Vec<u8>, key: u32) {
    let mut text = *b"bench-0000000000";
    let mut left = key;
    for digit in text[6..].iter_mut().rev() {
        *digit = b"0123456789"[(left % 10) as usize];
        left /= 10;
    }
    into.extend_from_slice(&text);
}

/// The prefix that a hundred neighbours of this key share, itself among them.
pub fn neighbours(key: u32) -> String {
    format!("bench-{:08}", key / 100)
}

/// Draws keys.
#[derive(Clone, Debug)]
pub struct Picker {
    distribution: Distribution,
    loaded: u32,
    zipf: Zipf<f64>,
    scatter: Scatter,
}

impl Picker {
    /// Draws from the keys `0..loaded`, at least one, and for [`Distribution::Latest`] and
    /// [`Distribution::Uniform`] also from those that were inserted since.
    pub fn new(distribution: Distribution, loaded: u32) -> Self {
        let loaded = loaded.max(1);
        #[expect(clippy::expect_used, reason = "the proof stands in the message")]
        let zipf = Zipf::new(f64::from(loaded), THETA).expect("at least one key, exponent above 0");
        Self { distribution, loaded, zipf, scatter: Scatter::new(loaded) }
    }

    /// The next key, where `known` keys exist by now.
    pub fn pick(&self, rng: &mut impl Rng, known: u32) -> u32 {
        match self.distribution {
            Distribution::Uniform => rng.random_range(0..known.max(1)),
            Distribution::Zipfian => self.scatter.place(self.rank(rng)),
            Distribution::Latest => known.saturating_sub(1).saturating_sub(self.rank(rng)),
        }
    }

    /// 0 for the most wanted.
    fn rank(&self, rng: &mut impl Rng) -> u32 {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 1 and the number of keys, which is a u32"
        )]
        let rank = self.zipf.sample(rng) as u32;
        rank.clamp(1, self.loaded) - 1
    }
}

/// A permutation of `0..size`, so that no two ranks fall on one key and neighbours in rank lie apart.
#[derive(Clone, Copy, Debug)]
struct Scatter {
    size: u64,
    step: u64,
}

impl Scatter {
    fn new(size: u32) -> Self {
        let size = u64::from(size);
        // A step without a common divisor visits every place once; the golden ratio spreads best.
        let mut step = (size * 618_034 / 1_000_000).max(1);
        while divisor(step, size) != 1 {
            step += 1;
        }
        Self { size, step }
    }

    fn place(self, rank: u32) -> u32 {
        let place = (u64::from(rank) * self.step + self.size / 3) % self.size;
        #[expect(clippy::cast_possible_truncation, reason = "below the size, which is a u32")]
        let place = place as u32;
        place
    }
}

fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::Xoshiro256PlusPlus;

    use super::*;

    const KEYS: u32 = 1_000;
    const DRAWS: u32 = 400_000;

    fn frequencies(distribution: Distribution) -> Vec<f64> {
        let picker = Picker::new(distribution, KEYS);
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(5);
        let mut counts = vec![0.0; KEYS as usize];
        for _ in 0..DRAWS {
            counts[picker.pick(&mut rng, KEYS) as usize] += 1.0 / f64::from(DRAWS);
        }
        counts
    }

    /// The share of each rank in theory: 1 / (k^θ · H).
    fn theory() -> Vec<f64> {
        let weight = |rank: u32| 1.0 / f64::from(rank).powf(THETA);
        let sum: f64 = (1..=KEYS).map(weight).sum();
        (1..=KEYS).map(|rank| weight(rank) / sum).collect()
    }

    #[test]
    fn zipfian_frequencies_are_those_of_the_theory() {
        let mut seen = frequencies(Distribution::Zipfian);
        seen.sort_by(|a, b| b.total_cmp(a));
        let theory = theory();
        for rank in [0, 1, 2, 9, 49] {
            // Five standard deviations of a binomial count.
            let noise = 5.0 * (theory[rank] / f64::from(DRAWS)).sqrt();
            assert!((seen[rank] - theory[rank]).abs() < noise, "rank {rank}: {}", seen[rank]);
        }
        let top = |shares: &[f64]| shares[..100].iter().sum::<f64>();
        assert!((top(&seen) - top(&theory)).abs() < 0.01, "{} {}", top(&seen), top(&theory));
    }

    #[test]
    fn wanted_keys_are_scattered_and_every_key_has_one_rank() {
        for size in [1, 2, 3, 10, 999, 1_000, 65_536] {
            let scatter = Scatter::new(size);
            let mut places: Vec<u32> = (0..size).map(|rank| scatter.place(rank)).collect();
            if size > 900 {
                assert!(places.windows(2).all(|two| two[0].abs_diff(two[1]) > size / 4));
            }
            places.sort_unstable();
            assert!(places.iter().copied().eq(0..size), "{size}");
        }
    }

    #[test]
    fn latest_wants_the_newest_and_uniform_all() {
        let latest = frequencies(Distribution::Latest);
        assert!((latest[KEYS as usize - 1] - theory()[0]).abs() < 0.01);
        let uniform = frequencies(Distribution::Uniform);
        assert!(uniform.iter().all(|share| (0.0005..0.0016).contains(share)));
    }

    #[test]
    fn a_key_is_in_the_range_of_its_neighbours() {
        assert!(text(1_234_567).starts_with(&neighbours(1_234_567)));
        assert!(text(u32::MAX).starts_with("bench-"));
        assert_eq!(neighbours(199), neighbours(100));
        assert_ne!(neighbours(200), neighbours(100));
    }
}
