//! The bytes of a message between instances.
//!
//! ```text
//!  0      format, "1"
//!  1      kind: "W" written, "C" cleared, "H" heartbeat
//!  2..18  epoch, 16 hexadecimal digits
//! 18..38  number, 20 decimal digits
//! 38..    written: for each key its version, u64, and the length of the key, u16, both little
//!         endian; the key
//! ```

use terrace_core::{Key, Lease, Version};

use super::entry::parse_epoch;

const HEAD: usize = 38;

/// One message, as scripts publish it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) epoch: Lease,
    pub(super) number: u64,
    pub(super) content: Content,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Written(Vec<(Key, Version)>),
    Cleared,
    Heartbeat,
}

/// The body of a message about these keys.
pub(super) fn encode_keys(written: &[(Key, Version)]) -> Vec<u8> {
    let length = written.iter().map(|(key, _)| key.as_str().len() + 10).sum();
    let mut bytes = Vec::with_capacity(length);
    for (key, version) in written {
        bytes.extend_from_slice(&version.get().to_le_bytes());
        // A key has at most 255 characters of at most 4 bytes.
        let length = u16::try_from(key.as_str().len()).unwrap_or(u16::MAX);
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(key.as_str().as_bytes());
    }
    bytes
}

impl Message {
    /// `None` for what another version of Terrace, or somebody else, published.
    pub(super) fn parse(bytes: &[u8]) -> Option<Self> {
        let (head, body) = bytes.split_at_checked(HEAD)?;
        if head[0] != b'1' {
            return None;
        }
        let epoch = parse_epoch(&head[2..18])?;
        let number = std::str::from_utf8(&head[18..]).ok()?.parse().ok()?;
        let content = match head[1] {
            b'W' => Content::Written(parse_keys(body)?),
            b'C' => Content::Cleared,
            b'H' => Content::Heartbeat,
            _ => return None,
        };
        Some(Self { epoch, number, content })
    }
}

fn parse_keys(mut body: &[u8]) -> Option<Vec<(Key, Version)>> {
    let mut keys = Vec::new();
    while !body.is_empty() {
        let (version, rest) = body.split_first_chunk::<8>()?;
        let (length, rest) = rest.split_first_chunk::<2>()?;
        let (key, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
        let key = Key::new(std::str::from_utf8(key).ok()?).ok()?;
        keys.push((key, Version::new(u64::from_le_bytes(*version))));
        body = rest;
    }
    Some(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written() {
        let keys = [("a", 1), ("naïve key", u64::MAX)]
            .map(|(key, version)| (Key::new(key).unwrap(), Version::new(version)));
        let mut bytes = b"1W00000000000000ff00000000000000000042".to_vec();
        bytes.extend(encode_keys(&keys));
        let message = Message::parse(&bytes).unwrap();
        let content = Content::Written(keys.to_vec());
        assert_eq!(message, Message { epoch: Lease(255), number: 42, content });
        // A message that ends within a key is not taken for a shorter one.
        assert!(Message::parse(&bytes[..bytes.len() - 1]).is_none());
        assert!(Message::parse(&bytes[..20]).is_none());
        assert!(Message::parse(b"").is_none());
    }
}
