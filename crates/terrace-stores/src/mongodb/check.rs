//! What is asked and made before the first call: what server it is, the indexes, the history.

use mongodb::IndexModel;
use mongodb::bson::{Document, RawDocumentBuf, doc};
use mongodb::options::IndexOptions;
use terrace_core::{Error, Result, Standing};

use super::failure;
use super::history::History;
use super::link::ServerSession;
use super::query::CollectionRows;
use super::server::Server;

/// Asks and makes it.
///
/// # Errors
/// `InvalidInput` for a collection with several rows of one key; it is left as it is.
pub(super) async fn prepare(
    session: ServerSession,
    collection: String,
) -> Result<(Server, Standing)> {
    let server = server(&session).await?;
    tracing::debug!(%server, database = session.database.name(), collection, "a document server");
    let rows = CollectionRows::of(session.clone(), &collection);
    make_indexes(&rows).await?;
    let standing = History { of: collection }.look(&session).await?;
    Ok((server, standing))
}

/// Makes the indexes that are missing.
///
/// # Errors
/// As [`prepare`].
pub(super) async fn make_indexes(rows: &CollectionRows) -> Result<()> {
    rows.session.writes()?;
    index(rows, doc! { "key": 1 }, true).await?;
    index(rows, doc! { "words": 1 }, false).await
}

async fn server(session: &ServerSession) -> Result<Server> {
    let ask = |command: &str| {
        let asked = doc! { command: 1 };
        async { session.database.run_command(asked).await.map(|it| RawDocumentBuf::try_from(&it)) }
    };
    let hello = ask("hello").await.map_err(failure::of_read)?.map_err(failure::bson)?;
    let build = ask("buildInfo").await.map_err(failure::of_read)?.map_err(failure::bson)?;
    // Not every user may ask for it.
    let status = ask("serverStatus").await.ok().and_then(Result::ok);
    Ok(Server::of(&hello, &build, status.as_deref()))
}

async fn index(rows: &CollectionRows, keys: Document, is_unique: bool) -> Result<()> {
    let options = IndexOptions::builder().unique(is_unique.then_some(true)).build();
    let model = IndexModel::builder().keys(keys).options(options).build();
    let Err(error) = rows.collection.create_index(model).await else { return Ok(()) };
    if is_unique && let Some(key) = twice(rows).await? {
        let message = format!(
            "the collection {} has several documents with the key {key:?}; remove all but one, and each \
             other such, and start again",
            rows.collection.name()
        );
        return Err(Error::invalid(message).caused_by(error));
    }
    Err(failure::of_read(error))
}

/// A key that several rows have.
async fn twice(rows: &CollectionRows) -> Result<Option<String>> {
    let stages = [
        doc! { "$group": { "_id": "$key", "rows": { "$sum": 1 } } },
        doc! { "$match": { "rows": { "$gt": 1 } } },
        doc! { "$limit": 1 },
    ];
    let mut found = rows.collection.aggregate(stages).await.map_err(failure::of_read)?;
    match found.advance().await.map_err(failure::of_read)? {
        true => Ok(Some(found.current().get_str("_id").unwrap_or("null").to_owned())),
        false => Ok(None),
    }
}
