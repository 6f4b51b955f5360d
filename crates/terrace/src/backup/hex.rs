//! Bytes as hexadecimal digits, two each.

/// The digits.
pub(super) fn of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes; none when it has anything else.
pub(super) fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits = text.chars().map(|it| it.to_digit(16)).collect::<Option<Vec<_>>>()?;
    let pairs = digits.chunks(2).map(|pair| match pair {
        [high, low] => u8::try_from(high * 16 + low).ok(),
        _ => None,
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_and_nothing_else_is_any() {
        let all = (0..=255).collect::<Vec<u8>>();
        assert_eq!(bytes(&of(&all)), Some(all));
        for wrong in ["0", "0g", "a\u{e9}"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
}
