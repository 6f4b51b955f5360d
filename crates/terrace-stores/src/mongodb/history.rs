//! Which collection this is, and the generation of what is cached from it.
//!
//! A document of `terrace_meta` names the history. It is copied with the data, so it keeps beside the name
//! what is not: the UUID of the collection, where the server tells one, else the name of its database.
//! Where they differ, as after a restore or a copy, a new history begins, under a new generation.

use std::sync::Arc;

use mongodb::Collection;
use mongodb::bson::{Document, RawBsonRef, RawDocument, RawDocumentBuf, doc};
use terrace_core::history::copy_of;
use terrace_core::{Generation, Result, Standing};

use super::failure;
use super::link::ServerSession;
use super::row::whole;

/// The collection.
pub(super) const COLLECTION: &str = "terrace_meta";

/// Where the history of a collection is kept.
#[derive(Clone, Debug)]
pub(super) struct History {
    /// The collection that it is of.
    pub(super) of: String,
}

impl History {
    /// What is in force now; begins a history where there is none, or one of other data.
    pub(super) async fn look(&self, session: &ServerSession) -> Result<Standing> {
        let metas = metas(session);
        loop {
            let identity = self.identity(session).await?;
            let found = metas.find_one(doc! { "_id": self.id() }).await;
            let Some(found) = found.map_err(failure::of_read)? else {
                self.begin(session, &identity).await?;
                continue;
            };
            let kept = Kept::of(&found)?;
            if kept.identity == identity {
                return Ok(kept.standing());
            }
            self.begin_anew(session, &kept, &identity).await?;
        }
    }

    /// Raises the generation.
    pub(super) async fn raise(&self, session: &ServerSession) -> Result<()> {
        session.writes()?;
        let raised = doc! { "$inc": { "generation": 1_i64 } };
        let raised = metas(session).update_one(doc! { "_id": self.id() }, raised).await;
        match raised.map_err(failure::of_write)?.matched_count {
            // Somebody has removed it; what is looked at next begins a history.
            0 => self.look(session).await.map(drop),
            _ => Ok(()),
        }
    }

    fn id(&self) -> String {
        format!("history:{}", self.of)
    }

    /// What is not copied with the data.
    async fn identity(&self, session: &ServerSession) -> Result<String> {
        let listed = session.database.list_collections().filter(doc! { "name": &self.of });
        let mut listed = listed.await.map_err(failure::of_read)?;
        let mut uuid = None;
        while listed.advance().await.map_err(failure::of_read)? {
            let info = listed.current().get_document("info");
            let told = info.and_then(|info| info.get_binary("uuid"));
            uuid = told.ok().map(|uuid| uuid.bytes.to_vec());
        }
        Ok(match uuid.filter(|uuid| uuid.iter().any(|byte| *byte != 0)) {
            Some(uuid) => uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            None => format!("{}.{}", session.database.name(), self.of),
        })
    }

    async fn begin(&self, session: &ServerSession, identity: &str) -> Result<()> {
        session.writes()?;
        let first = doc! {
            "_id": self.id(),
            "name": format!("{}.1", lineage(session)),
            "past": Vec::<String>::new(),
            "identity": identity,
            "generation": 0_i64,
        };
        let first = RawDocumentBuf::try_from(&first).map_err(failure::bson)?;
        match metas(session).insert_one(first).await {
            Err(error) if !failure::is_duplicate(&error) => Err(failure::of_write(error)),
            // Somebody else was faster.
            _ => Ok(()),
        }
    }

    async fn begin_anew(&self, session: &ServerSession, kept: &Kept, identity: &str) -> Result<()> {
        tracing::warn!(
            collection = self.of,
            "the collection is a copy of another, or was restored: it begins a history of its own, and \
             tokens of the other are lost here"
        );
        session.writes()?;
        let name = format!("{}{}.1", lineage(session), copy_of(&kept.name));
        let past = kept.past.iter().chain([&kept.name]).collect::<Vec<_>>();
        let next: Document = doc! {
            "$set": { "name": name, "past": past, "identity": identity },
            "$inc": { "generation": 1_i64 },
        };
        let theirs = doc! { "_id": self.id(), "name": &kept.name };
        metas(session).update_one(theirs, next).await.map(drop).map_err(failure::of_write)
    }
}

/// The document as it is stored.
struct Kept {
    name: String,
    past: Vec<String>,
    identity: String,
    generation: u64,
}

impl Kept {
    fn of(raw: &RawDocument) -> Result<Self> {
        let bad = failure::corrupt;
        let text = |name: &'static str| raw.get_str(name).map(str::to_owned).map_err(|_| bad(name));
        let generation = whole(raw.get("generation").map_err(failure::bson)?);
        let generation = generation.ok_or_else(|| bad("generation"))?;
        let past = raw.get_array("past").map_err(|_| bad("past"))?.into_iter();
        let past = past.filter_map(|name| match name {
            Ok(RawBsonRef::String(name)) => Some(name.to_owned()),
            _ => None,
        });
        Ok(Self {
            name: text("name")?,
            past: past.collect(),
            identity: text("identity")?,
            generation: u64::try_from(generation).unwrap_or(0),
        })
    }

    fn standing(self) -> Standing {
        Standing {
            history: self.name.into(),
            generation: Generation::new(self.generation),
            past: self.past.into_iter().map(Arc::from).collect(),
        }
    }
}

fn lineage(session: &ServerSession) -> String {
    format!("mongo-{:012x}", session.runtime.random() >> 16)
}

fn metas(session: &ServerSession) -> Collection<RawDocumentBuf> {
    session.database.collection(COLLECTION)
}
