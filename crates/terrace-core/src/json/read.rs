//! Reads JSON.

use std::collections::HashMap;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::Json;
use crate::{Error, Result};

pub(super) fn parse(text: &str) -> Result<Json> {
    if let Some(number) = large_integer(text) {
        let shown = number.get(..40).unwrap_or(number);
        return Err(Error::invalid(format!(
            "the integer {shown} does not fit into 64 bits; send it as a string, or with a fraction"
        )));
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    // The depth has its own bound, which is below that of the reader.
    let read = Level(0).deserialize(&mut reader).and_then(|json| reader.end().map(|()| json));
    read.map_err(|error| match error.to_string() {
        // Of the reader's own bound.
        message if message.starts_with("recursion limit") => Error::invalid(too_deep()),
        message => Error::invalid(format!("the document is not JSON that can be kept: {message}")),
    })
}

/// The first integer that a 64-bit number cannot hold: a reader of JSON makes a float of it.
fn large_integer(text: &str) -> Option<&str> {
    let (mut in_string, mut escaped, mut begin) = (false, false, None);
    for (place, byte) in text.bytes().enumerate() {
        if in_string {
            (in_string, escaped) = (escaped || byte != b'"', !escaped && byte == b'\\');
            continue;
        }
        let of_number = matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        match begin {
            None if matches!(byte, b'0'..=b'9' | b'-') => begin = Some(place),
            Some(first) if !of_number => {
                begin = None;
                if let Some(large) = beyond_64_bits(&text[first..place]) {
                    return Some(large);
                }
            }
            _ => {}
        }
        in_string = byte == b'"';
    }
    begin.and_then(|first| beyond_64_bits(&text[first..]))
}

fn beyond_64_bits(number: &str) -> Option<&str> {
    let digits = number.strip_prefix('-').unwrap_or(number);
    let integer = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    (integer && number.parse::<i64>().is_err()).then_some(number)
}

fn too_deep() -> String {
    format!("it has more than {} lists and objects within each other", Json::MAX_DEPTH)
}

/// Reads a value that lies within so many others.
struct Level(usize);

impl Level {
    fn within<E: serde::de::Error>(&self) -> Result<usize, E> {
        if self.0 < Json::MAX_DEPTH { Ok(self.0 + 1) } else { Err(E::custom(too_deep())) }
    }
}

impl<'de> DeserializeSeed<'de> for Level {
    type Value = Json;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Json, D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Level {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(Json::Bool(value))
    }

    fn visit_i64<E>(self, number: i64) -> Result<Json, E> {
        Ok(Json::Integer(number))
    }

    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Json, E> {
        i64::try_from(number).map(Json::Integer).map_err(E::custom)
    }

    fn visit_f64<E>(self, number: f64) -> Result<Json, E> {
        Ok(Json::Float(number))
    }

    fn visit_str<E>(self, text: &str) -> Result<Json, E> {
        Ok(Json::Text(text.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let level = self.within()?;
        let mut items = Vec::new();
        while let Some(item) = from.next_element_seed(Level(level))? {
            items.push(item);
        }
        Ok(Json::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut from: A) -> Result<Json, A::Error> {
        let level = self.within()?;
        let mut places: HashMap<String, usize> = HashMap::new();
        let mut fields: Vec<(String, Json)> = Vec::new();
        while let Some(name) = from.next_key::<String>()? {
            if name.contains('\0') {
                return Err(A::Error::custom("a name holds a NUL character; remove it"));
            }
            let field = from.next_value_seed(Level(level))?;
            match places.get(&name) {
                Some(place) => fields[*place].1 = field,
                None => {
                    places.insert(name.clone(), fields.len());
                    fields.push((name, field));
                }
            }
        }
        Ok(Json::Object(fields))
    }
}
