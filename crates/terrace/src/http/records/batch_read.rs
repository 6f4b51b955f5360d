//! `POST /v1/batch/read`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures_util::future::join_all;
use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::json;
use terrace_core::{Error, ErrorKind, Key, Origin, Read, ReadOptions, Token};
use utoipa::openapi::schema::{AdditionalProperties, OneOfBuilder};

use super::{ANSWER, MAX_BATCH, Records, Values};
use crate::access::Scope;
use crate::http::Shards;
use crate::http::call::Call;
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::fields::{self, Raw};
use crate::http::json::Object;
use crate::http::problem::{Kind, Problem};
use crate::http::reply::{self, Answer, WithHeaders as _};
use crate::http::schema::{Shape, array, object};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body<'a> {
    #[serde(borrow)]
    keys: Raw<'a>,
}

pub(super) fn endpoint(records: &Arc<Records>) -> Endpoint {
    let request = object(&[("keys", array(Shape::Key.schema(""), 1, MAX_BATCH))])
        .additional_properties(Some(AdditionalProperties::FreeForm(false)))
        .build();
    let missing = object(&[("key", Shape::Key.schema("")), ("missing", Shape::True.schema(""))]);
    let unavailable = Shape::True.schema("The shard of this key cannot be reached.");
    let unavailable = object(&[("key", Shape::Key.schema("")), ("unavailable", unavailable)]);
    let item = OneOfBuilder::new().item(Values::Texts.listed_schema()).item(missing.build());
    let item = item.item(unavailable.build()).build();
    let answer = object(&[("records", array(item.into(), 1, MAX_BATCH))]).build();
    Endpoint::new(records, Method::POST, "/v1/batch/read", |records, call| {
        Box::pin(read(records, call))
    })
    .summary(Values::Texts.group(), "Read many records")
    .description(
        "1 to 1000 keys; the answers are in the order asked. 422 when their values have more \
             than 16 MiB together: ask for fewer keys at once. On a level with shards a key whose \
             shard does not answer is `unavailable`, while others are answered.",
    )
    .takes(request, json!({"keys": ["greeting", "farewell"]}))
    .reads()
    .open_to(Needs::Scope(Scope::Read))
    .checks_keys()
    .problems(&[Kind::InvalidInput])
    .answers(
        StatusCode::OK,
        "One answer a key.",
        answer,
        &["Terrace-Origin", "Terrace-Token"],
    )
}

async fn read(records: &Records, call: &mut Call) -> Answer {
    let body = call.json().await?;
    let fields = fields::object::<Body<'_>>(&body)?;
    let keys = fields::array("keys", fields.keys, MAX_BATCH)?
        .into_iter()
        .enumerate()
        .map(|(index, raw)| {
            let place = format!("keys[{index}]");
            let text = fields::text(&place, Some(raw))?;
            Key::new(text).map_err(|error| Problem::from(error).within(&place))
        })
        .collect::<Result<Vec<_>, _>>()?;
    call.pay_for(keys.len()).await?;
    let how = ReadOptions { budget: ANSWER, ..call.read_options()? };
    let (asked, places) = once_each(&keys);
    let reads = match &records.shards {
        None => records.read(call, &asked, &how).await?.into_iter().map(Some).collect(),
        Some(shards) => {
            asked.iter().try_for_each(|key| call.may_touch(key))?;
            read_parts(records, &**shards, &asked, &how).await?
        }
    };
    let mut token = Token::default();
    reads.iter().flatten().for_each(|read| token.merge(&read.token));
    let found = places.iter().map(|place| reads.get(*place)).collect::<Option<Vec<_>>>();
    let found =
        found.ok_or_else(|| Error::new(ErrorKind::Internal, "a store broke its contract"))?;
    // Shards were asked apart, and a key may be asked for many times.
    how.after(found.iter().filter_map(|read| read.as_ref()))?;
    let answers = keys.iter().zip(found);
    let answer = Object::with_capacity(192 * keys.len()).objects(
        "records",
        answers,
        |object, (key, read)| match read.as_ref().map(|read| &read.record) {
            Some(Some(record)) => object.record(record),
            Some(None) => object.field("key", key.as_str()).field("missing", &true),
            None => object.field("key", key.as_str()).field("unavailable", &true),
        },
    );
    Ok(reply::json(answer)
        .with_origin(furthest(reads.iter().flatten().map(|read| read.origin)))
        .with_token(&token))
}

/// Reads the keys of each shard by themselves, so that one which does not answer takes only its own
/// with it. Fails when no shard answers.
async fn read_parts(
    records: &Records,
    shards: &dyn Shards,
    keys: &[Key],
    how: &ReadOptions,
) -> Result<Vec<Option<Read>>, Problem> {
    let mut parts = BTreeMap::<_, (Vec<Key>, Vec<usize>)>::new();
    for (place, key) in keys.iter().enumerate() {
        let (part, places) = parts.entry(shards.shard_of(key)).or_default();
        part.push(key.clone());
        places.push(place);
    }
    let read = parts
        .into_values()
        .map(|(part, places)| async move { (records.store.read(&part, how).await, places) });
    let (mut reads, mut failure) = (vec![None; keys.len()], None);
    for (answer, places) in join_all(read).await {
        match answer {
            Ok(answers) => {
                places.into_iter().zip(answers).for_each(|(it, read)| reads[it] = Some(read));
            }
            Err(error) if error.is_retryable() => failure = Some(error),
            Err(error) => return Err(error.into()),
        }
    }
    match failure {
        Some(error) if reads.iter().all(Option::is_none) => Err(error.into()),
        _ => Ok(reads),
    }
}

/// Each key once, and for each key asked its place among them: a key costs one read, however often
/// it is asked for.
fn once_each(keys: &[Key]) -> (Vec<Key>, Vec<usize>) {
    let mut asked = Vec::with_capacity(keys.len());
    let mut known = HashMap::with_capacity(keys.len());
    let places = keys.iter().map(|key| {
        *known.entry(key).or_insert_with(|| {
            asked.push(key.clone());
            asked.len() - 1
        })
    });
    let places = places.collect();
    (asked, places)
}

/// A batch has one origin: of all that answered, the one furthest from the client.
fn furthest(origins: impl Iterator<Item = Origin>) -> Origin {
    origins.max_by_key(|origin| origin.tier).unwrap_or(Origin::PRIMARY)
}
