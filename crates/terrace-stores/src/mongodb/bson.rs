//! Between JSON and BSON, value by value.
//!
//! No extended JSON: `{"$oid": "..."}` is an object with that name, and a number keeps its kind. The
//! driver's own conversions read such names, so BSON is walked as it came over the wire.

use mongodb::bson::{Bson, Document, RawBsonRef, RawDocument};
use terrace_core::{Json, Result, Timestamp};

use super::failure;

/// The BSON of a value.
pub(super) fn of_json(json: &Json) -> Bson {
    match json {
        Json::Null => Bson::Null,
        Json::Bool(value) => Bson::Boolean(*value),
        Json::Integer(number) => Bson::Int64(*number),
        Json::Float(number) => Bson::Double(*number),
        Json::Text(text) => Bson::String(text.clone()),
        Json::List(items) => Bson::Array(items.iter().map(of_json).collect()),
        Json::Object(fields) => {
            let fields = fields.iter().map(|(name, value)| (name.clone(), of_json(value)));
            Bson::Document(fields.collect::<Document>())
        }
    }
}

/// The JSON of a value. What only BSON has is made a string that people can read.
///
/// # Errors
/// `Corrupt` for bytes that are no BSON.
pub(super) fn to_json(value: RawBsonRef<'_>) -> Result<Json> {
    Ok(match value {
        RawBsonRef::Null | RawBsonRef::Undefined => Json::Null,
        RawBsonRef::Boolean(value) => Json::Bool(value),
        RawBsonRef::Int32(number) => Json::Integer(number.into()),
        RawBsonRef::Int64(number) => Json::Integer(number),
        RawBsonRef::Double(number) if number.is_finite() => Json::Float(number),
        RawBsonRef::String(text) => Json::Text(text.to_owned()),
        RawBsonRef::Array(items) => {
            let items = items.into_iter().map(|item| to_json(item.map_err(failure::bson)?));
            Json::List(items.collect::<Result<_>>()?)
        }
        RawBsonRef::Document(document) => object(document)?,
        other => Json::Text(readable(other)),
    })
}

/// The JSON of a document.
///
/// # Errors
/// As [`to_json`].
pub(super) fn object(document: &RawDocument) -> Result<Json> {
    let fields = document.iter().map(|field| {
        let (name, value) = field.map_err(failure::bson)?;
        Ok((name.as_str().to_owned(), to_json(value)?))
    });
    Ok(Json::Object(fields.collect::<Result<_>>()?))
}

fn readable(value: RawBsonRef<'_>) -> String {
    let hexadecimal = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match value {
        RawBsonRef::DateTime(time) => match Timestamp::from_millisecond(time.timestamp_millis()) {
            Ok(time) => time.to_string(),
            Err(_) => format!("{} ms since 1970", time.timestamp_millis()),
        },
        RawBsonRef::ObjectId(id) => id.to_hex(),
        RawBsonRef::Decimal128(number) => number.to_string(),
        RawBsonRef::Binary(binary) => hexadecimal(binary.bytes),
        RawBsonRef::RegularExpression(regex) => {
            format!("/{}/{}", regex.pattern.as_str(), regex.options.as_str())
        }
        RawBsonRef::JavaScriptCode(code) | RawBsonRef::Symbol(code) => code.to_owned(),
        RawBsonRef::JavaScriptCodeWithScope(code) => code.code.to_owned(),
        RawBsonRef::Timestamp(time) => format!("{}.{}", time.time, time.increment),
        RawBsonRef::Double(number) => number.to_string(),
        RawBsonRef::MaxKey => "MaxKey".to_owned(),
        RawBsonRef::MinKey => "MinKey".to_owned(),
        RawBsonRef::DbPointer(_) => "DBPointer".to_owned(),
        // The other kinds are those of JSON.
        _ => String::new(),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]
mod tests {
    use std::str::FromStr;

    use mongodb::bson::{DateTime, Decimal128, RawDocumentBuf, doc, oid::ObjectId};

    use super::*;

    #[test]
    fn a_document_comes_back_as_it_was() {
        for text in [
            r#"{"b":1,"a":1.0,"":{"$oid":"507f1f77bcf86cd799439011"},"a.b":[null,true,"x"]}"#,
            r#"{"$date":"x","$numberLong":"1","n":[9007199254740993,-9223372036854775808,-0.0]}"#,
        ] {
            let Bson::Document(bson) = of_json(&Json::parse(text).unwrap()) else { panic!() };
            let raw = RawDocumentBuf::try_from(&bson).unwrap();
            assert_eq!(object(&raw).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_json_has_not_can_be_read() {
        let id = ObjectId::parse_str("507f1f77bcf86cd799439011").unwrap();
        let bson = doc! {
            "date": DateTime::from_millis(1_577_836_800_000),
            "id": id,
            "price": Decimal128::from_str("12.50").unwrap(),
            "n": f64::NAN,
            "small": 5_i32,
        };
        let raw = RawDocumentBuf::try_from(&bson).unwrap();
        assert_eq!(
            object(&raw).unwrap().to_string(),
            r#"{"date":"2020-01-01T00:00:00Z","id":"507f1f77bcf86cd799439011","price":"12.50","n":"NaN","small":5}"#
        );
    }

    #[test]
    fn fuzzed_json_comes_back_out_of_bson_and_any_bytes_are_read_or_refused() {
        let like = &[
            r#"{"b":1,"a":1.0,"":{"$oid":"507f1f77bcf86cd799439011"},"a.b":[null,true,"x"]}"#,
            r#"{"n":[9007199254740993,-9223372036854775808,-0.0,1e308],"\u00e9":"\ud83d\ude00"}"#,
            // BSON: {"a": 1, "b": ["x"]}
            "\u{1d}\0\0\0\u{10}a\0\u{1}\0\0\0\u{4}b\0\u{e}\0\0\0\u{2}\u{30}\0\u{2}\0\0\0x\0\0\0",
        ];
        let inputs = terrace_core::testkit::bytes_like(like);
        let tried = terrace_core::testkit::fuzzed(&inputs, |input| {
            if let Ok(raw) = RawDocument::from_bytes(&input) {
                let _ = object(raw);
            }
            let Ok(text) = str::from_utf8(&input) else { return };
            let Ok(json @ Json::Object(_)) = Json::parse(text) else { return };
            let Bson::Document(bson) = of_json(&json) else { panic!("an object is a document") };
            let raw = RawDocumentBuf::try_from(&bson).unwrap();
            assert_eq!(object(&raw).unwrap().to_string(), json.to_string());
            assert_eq!(Json::parse(&json.to_string()).unwrap(), json);
        });
        println!("{tried} inputs were tried");
    }
}
