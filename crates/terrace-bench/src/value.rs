//! Values that name their write.
//!
//! `1f.2.3a9.9c3d1b2a7f` says: key 0x1f, writer 2, its write 0x3a9, and a check over all of them and
//! the run. So a read tells which write it shows, and an answer that no write of this run explains is
//! recognised. What is asked for beyond that is filled up with dots.

use crate::keys;

/// One write of a run: who made it, and the how-manieth of his it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WriteId(u64);

impl WriteId {
    const SEQUENCE_BITS: u32 = 48;

    /// The `sequence`th write of a writer.
    pub fn new(writer: u16, sequence: u64) -> Self {
        Self(u64::from(writer) << Self::SEQUENCE_BITS | sequence)
    }

    /// Who wrote.
    pub fn writer(self) -> u64 {
        self.0 >> Self::SEQUENCE_BITS
    }

    /// The how-manieth write of the writer.
    pub fn sequence(self) -> u64 {
        self.0 & ((1 << Self::SEQUENCE_BITS) - 1)
    }
}

/// What a value says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    /// The key it was written to.
    pub key: u32,
    /// The write that made it.
    pub write: WriteId,
}

/// Makes values of one run and reads them back.
#[derive(Clone, Copy, Debug)]
pub struct Values {
    run: u64,
}

impl Values {
    /// Values that only the run of this number takes for its own.
    pub fn new(run: u64) -> Self {
        Self { run }
    }

    /// Appends the value of a write, at least `bytes` long.
    pub fn write(self, into: &mut Vec<u8>, named: Named, bytes: usize) {
        let from = into.len();
        for (index, part) in [u64::from(named.key), named.write.writer(), named.write.sequence()]
            .into_iter()
            .enumerate()
        {
            if index > 0 {
                into.push(b'.');
            }
            hex(into, part);
        }
        into.push(b'.');
        hex(into, self.check(named));
        let wanted = from + bytes;
        if into.len() < wanted {
            into.resize(wanted, b'.');
        }
    }

    /// Appends the user of a key. Every run has users of its own, so that their statements begin empty.
    pub fn user(self, into: &mut Vec<u8>, key: u32) {
        keys::write(into, key);
        into.push(b'-');
        hex(into, self.run);
    }

    /// What a value says, if a write of this run can have made it.
    pub fn read(self, value: &str) -> Option<Named> {
        let mut parts = value.trim_end_matches('.').split('.');
        let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
        let (key, writer, sequence, check) = (number()?, number()?, number()?, number()?);
        let key = u32::try_from(key).ok()?;
        let write = WriteId::new(u16::try_from(writer).ok()?, sequence);
        let named = Named { key, write };
        (check == self.check(named) && parts.next().is_none()).then_some(named)
    }

    /// 40 bits that depend on the run, the key and the write (the finalizer of SplitMix64).
    fn check(self, named: Named) -> u64 {
        let mut z = self.run ^ named.write.0.rotate_left(17) ^ (u64::from(named.key) << 1);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) >> 24
    }
}

/// Appends a number in base 16 without leading zeros.
fn hex(into: &mut Vec<u8>, number: u64) {
    let digits = (64 - number.leading_zeros()).div_ceil(4).max(1);
    for at in (0..digits).rev() {
        into.push(b"0123456789abcdef"[(number >> (4 * at) & 15) as usize]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_names_its_write_and_no_other_run_accepts_it() {
        for (key, writer, sequence) in [(0, 0, 0), (31, 2, 937), (u32::MAX, 999, 1 << 47)] {
            let named = Named { key, write: WriteId::new(writer, sequence) };
            let mut text = Vec::new();
            Values::new(7).write(&mut text, named, 64);
            assert_eq!(text.len(), 64);
            let text = String::from_utf8(text).unwrap();
            assert_eq!(Values::new(7).read(&text), Some(named));
            assert_eq!(Values::new(8).read(&text), None);
            assert_eq!(Values::new(7).read(&format!("1{text}")), None);
        }
        for odd in ["", ".", "Ada", "1.2.3", "1.2.3.4.5", "-1.0.0.0"] {
            assert_eq!(Values::new(7).read(odd), None, "{odd}");
        }
    }

    #[test]
    fn a_short_value_is_about_twenty_bytes() {
        let mut text = Vec::new();
        let write = WriteId::new(1, 0xfff);
        Values::new(1).write(&mut text, Named { key: 9_999, write }, 20);
        assert!((20..=24).contains(&text.len()), "{}", text.len());
    }
}
