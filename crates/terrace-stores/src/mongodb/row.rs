//! A row of the collection, as it is stored.

use mongodb::bson::{Bson, Document, RawBsonRef, RawDocument, doc};
use terrace_core::{Json, Key, Outcome, Record, Result, Timestamp, Value, Version};

use super::{bson, failure};
use crate::row::in_row;

/// A row that was read.
#[derive(Debug)]
pub(super) struct Row {
    pub(super) key: Key,
    /// As it stands there; nothing in a row that another program made.
    stored_version: Option<i64>,
    pub(super) is_live: bool,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    /// The requests that wrote it, the latest last.
    pub(super) requests: Vec<Noted>,
    /// The content, where it was asked for.
    value: Option<Value>,
}

/// A request that wrote a row.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Noted {
    /// The request's key, and the number of the write in it.
    pub(super) request: String,
    pub(super) outcome: Outcome,
    pub(super) version: Version,
    pub(super) at: Timestamp,
}

impl Row {
    /// Reads a row.
    ///
    /// # Errors
    /// `Corrupt` for one that Terrace cannot have written.
    pub(super) fn of(raw: &RawDocument) -> Result<Self> {
        let Some(RawBsonRef::String(name)) = raw.get("key").map_err(failure::bson)? else {
            return Err(failure::corrupt("key"));
        };
        let key = Key::new(name).map_err(|_| in_row(failure::corrupt("key"), name))?;
        Self::read(key, raw).map_err(|error| in_row(error, name))
    }

    fn read(key: Key, raw: &RawDocument) -> Result<Self> {
        let get = |name: &str| raw.get(name).map_err(failure::bson);
        let stored_version = match get("version")? {
            None => None,
            found => Some(whole(found).ok_or_else(|| failure::corrupt("version"))?),
        };
        let born = match get("_id")? {
            Some(RawBsonRef::ObjectId(id)) => {
                moment_of(id.timestamp().timestamp_millis().saturating_mul(1000))
            }
            _ => Timestamp::UNIX_EPOCH,
        };
        let time = |name| match get(name)? {
            Some(RawBsonRef::Int64(micros)) => Ok(moment_of(micros)),
            _ => Ok(born),
        };
        // Servers that are not MongoDB may make numbers of what was true or false.
        let deleted =
            whole(get("deleted")?) == Some(1) || get("deleted")? == Some(RawBsonRef::Boolean(true));
        let is_live = !deleted;
        let value = match get("data")? {
            Some(RawBsonRef::Document(data)) if is_live => {
                let unfit = |error| failure::no_document().caused_by(error);
                let text = bson::object(data).map_err(unfit)?.to_string();
                Some(Value::new(text).map_err(unfit)?)
            }
            Some(RawBsonRef::Null) if is_live => match get("text")? {
                Some(RawBsonRef::String(text)) => {
                    Some(Value::new(text).map_err(|_| failure::corrupt("text"))?)
                }
                _ => None,
            },
            Some(_) if is_live => return Err(failure::no_document()),
            _ => None,
        };
        let requests = match get("requests")? {
            Some(RawBsonRef::Array(all)) => {
                let all = all.into_iter().map(|one| match one {
                    Ok(RawBsonRef::Document(one)) => noted(one),
                    _ => None,
                });
                all.flatten().collect()
            }
            _ => Vec::new(),
        };
        let (created_at, updated_at) = (time("created_at")?, time("updated_at")?);
        Ok(Self { key, stored_version, is_live, created_at, updated_at, requests, value })
    }

    /// Its version; 1 for a row that another program made.
    pub(super) fn version(&self) -> Version {
        match self.stored_version {
            Some(number) => Version::of_row(number).unwrap_or(Version::NONE),
            None => Version::new(1),
        }
    }

    /// Finds this row as long as nobody has written it.
    pub(super) fn unchanged(&self) -> Document {
        let version = match self.stored_version {
            Some(number) => Bson::Int64(number),
            None => Bson::Document(doc! { "$exists": false }),
        };
        doc! { "key": self.key.as_str(), "version": version }
    }

    /// What a request did to it, if it did.
    pub(super) fn done_for(&self, request: &str) -> Option<(Outcome, Version)> {
        let noted = self.requests.iter().find(|noted| noted.request == request)?;
        Some((noted.outcome, noted.version))
    }

    /// The record, none of a deleted document.
    ///
    /// # Errors
    /// `Corrupt` for a row without content.
    pub(super) fn record(&self) -> Result<Option<Record>> {
        if !self.is_live {
            return Ok(None);
        }
        let missing = || in_row(failure::no_document(), self.key.as_str());
        Ok(Some(Record {
            key: self.key.clone(),
            value: self.value.clone().ok_or_else(missing)?,
            version: self.version(),
            created_at: self.created_at,
            updated_at: self.updated_at,
        }))
    }
}

/// What a row is to be.
#[derive(Debug)]
pub(super) struct Content<'a> {
    /// Nothing for a deleted document, and for what is none.
    pub(super) document: Option<&'a Json>,
    /// What is followed and is no document.
    pub(super) text: Option<&'a str>,
    pub(super) version: Version,
    pub(super) created_at: Timestamp,
    pub(super) updated_at: Timestamp,
    pub(super) requests: &'a [Noted],
}

impl Content<'_> {
    /// The fields that are set.
    pub(super) fn fields(&self) -> Document {
        let mut fields = doc! {
            "data": self.document.map_or(Bson::Null, bson::of_json),
            "version": number(self.version),
            "created_at": time(self.created_at),
            "updated_at": time(self.updated_at),
            "words": self.document.map(Json::words).unwrap_or_default(),
            "deleted": self.document.is_none() && self.text.is_none(),
        };
        if let Some(text) = self.text {
            fields.insert("text", text);
        }
        if !self.requests.is_empty() {
            fields.insert("requests", self.requests.iter().map(of_noted).collect::<Vec<_>>());
        }
        fields
    }
}

/// A version as it is stored.
pub(super) fn number(version: Version) -> i64 {
    i64::try_from(version.get()).unwrap_or(i64::MAX)
}

/// A moment as it is stored: microseconds since 1970, as dates of BSON have milliseconds alone.
pub(super) fn time(moment: Timestamp) -> i64 {
    moment.as_microsecond()
}

fn moment_of(micros: i64) -> Timestamp {
    let edge = if micros < 0 { Timestamp::MIN } else { Timestamp::MAX };
    Timestamp::from_microsecond(micros).unwrap_or(edge)
}

/// A whole number of either size.
pub(super) fn whole(value: Option<RawBsonRef<'_>>) -> Option<i64> {
    match value? {
        RawBsonRef::Int64(number) => Some(number),
        RawBsonRef::Int32(number) => Some(number.into()),
        _ => None,
    }
}

fn of_noted(noted: &Noted) -> Document {
    // The outcomes of writes that were applied have a word each.
    let outcome = serde_json::to_string(&noted.outcome).unwrap_or_default();
    doc! {
        "request": &noted.request,
        "outcome": outcome,
        "version": number(noted.version),
        "at": time(noted.at),
    }
}

fn noted(raw: &RawDocument) -> Option<Noted> {
    Some(Noted {
        request: raw.get_str("request").ok()?.to_owned(),
        outcome: serde_json::from_str(raw.get_str("outcome").ok()?).ok()?,
        version: Version::of_row(whole(raw.get("version").ok()?)?)?,
        at: moment_of(whole(raw.get("at").ok()?)?),
    })
}
