//! Documents as a plain store, so that the suite of stores runs over them.

use std::fmt;
use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::DocumentsFixture;
use crate::testkit::{StoreFixture, value};
use crate::{
    Change, Documents, Inspection, Json, Key, Page, Read, ReadOptions, Receipt, Record, Result,
    Scan, Store, Value, Write, WriteOptions,
};

/// The same as a store of any values: a text is kept as the field `text` of a document.
pub fn as_records(fixture: DocumentsFixture) -> StoreFixture {
    let documents = Arc::clone(&fixture.subject);
    StoreFixture::guarded(Arc::new(AsRecords(documents)), fixture)
}

#[derive(Debug)]
struct AsRecords(Arc<dyn Documents>);

/// What a document needs beside the text. The suite's texts without this much room end in as many `x`.
const ROOM: usize = 32;

fn wrapped(plain: &Value) -> Value {
    let plain = plain.as_str();
    let short = (plain.len() > Value::MAX_BYTES - ROOM).then(|| &plain[..plain.len() - ROOM]);
    let text = Json::Text(short.unwrap_or(plain).to_owned());
    value(
        Json::Object(vec![(if short.is_some() { "cut" } else { "text" }.into(), text)]).to_string(),
    )
}

fn unwrapped(record: Record) -> Record {
    let Ok(Json::Object(fields)) = Json::parse(record.value.as_str()) else {
        panic!("a document");
    };
    let [(name, Json::Text(text))] = &fields[..] else { panic!("one field") };
    let tail = if name == "cut" { "x".repeat(ROOM) } else { String::new() };
    Record { value: value(format!("{text}{tail}")), ..record }
}

impl fmt::Display for AsRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[deny(clippy::missing_trait_methods)]
impl Store for AsRecords {
    fn read<'a>(
        &'a self,
        keys: &'a [Key],
        how: &'a ReadOptions,
    ) -> BoxFuture<'a, Result<Vec<Read>>> {
        Box::pin(async move {
            let reads = self.0.read(keys, how).await?.into_iter();
            Ok(reads.map(|read| Read { record: read.record.map(unwrapped), ..read }).collect())
        })
    }

    fn write<'a>(
        &'a self,
        mut batch: Vec<Write>,
        how: &'a WriteOptions,
    ) -> BoxFuture<'a, Result<Vec<Receipt>>> {
        for write in &mut batch {
            if let Change::Put(value) = &mut write.change {
                *value = wrapped(value);
            }
        }
        self.0.write(batch, how)
    }

    fn scan<'a>(&'a self, scan: &'a Scan, how: &'a ReadOptions) -> BoxFuture<'a, Result<Page>> {
        Box::pin(async move {
            let page = self.0.scan(scan, how).await?;
            Ok(Page { records: page.records.into_iter().map(unwrapped).collect(), ..page })
        })
    }

    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        self.0.inspect()
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        self.0.close()
    }
}
