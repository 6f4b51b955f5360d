//! What server this is, as it says itself.

use std::fmt;

use mongodb::bson::{RawBsonRef, RawDocument};
use terrace_core::Durability;

const MONGODB: &str = "MongoDB";

/// A document server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Server {
    /// Its product. Only MongoDB is called MongoDB.
    product: String,
    /// The version of MongoDB that it is, or says to be compatible with.
    version: String,
    arrangement: Arrangement,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrangement {
    Standalone,
    /// With so many members that keep data.
    ReplicaSet(usize),
    /// Behind `mongos`.
    Sharded,
}

impl Server {
    /// Of its answers to `hello`, `buildInfo` and, where the user may ask for it, `serverStatus`.
    pub(super) fn of(
        hello: &RawDocument,
        build: &RawDocument,
        status: Option<&RawDocument>,
    ) -> Self {
        let has = |document: &RawDocument, name: &str| matches!(document.get(name), Ok(Some(_)));
        let process = status.and_then(|status| status.get_str("process").ok());
        let process = process.or_else(|| build.get_str("process").ok());
        let product = match process {
            Some(process) if is_mongodb(process) => MONGODB,
            Some("nx_27017") => "nx-27017",
            Some(other) => other,
            None if has(build, "ferretdb") => "FerretDB",
            None if has(build, "gitVersion") && has(build, "modules") => MONGODB,
            None => "a server that speaks MongoDB's protocol",
        };
        let members = match hello.get("hosts") {
            Ok(Some(RawBsonRef::Array(hosts))) => hosts.into_iter().count(),
            _ => 1,
        };
        let arrangement = if has(hello, "setName") {
            Arrangement::ReplicaSet(members)
        } else if hello.get_str("msg").is_ok_and(|msg| msg == "isdbgrid") {
            Arrangement::Sharded
        } else {
            Arrangement::Standalone
        };
        let version = build.get_str("version").unwrap_or("unknown version").to_owned();
        Self { product: product.to_owned(), version, arrangement }
    }

    /// Whether it is MongoDB itself.
    pub(super) fn is_mongodb(&self) -> bool {
        self.product == MONGODB
    }

    /// Whether reads can ask for what a majority has.
    pub(super) fn has_majority(&self) -> bool {
        self.arrangement != Arrangement::Standalone
    }

    /// What an acknowledged write is, with a majority of this: of three members two have it.
    pub(super) fn durability(&self) -> Durability {
        match self.arrangement {
            Arrangement::ReplicaSet(members) if members >= 3 => Durability::Replicated,
            _ => Durability::Committed,
        }
    }
}

fn is_mongodb(process: &str) -> bool {
    let name = process.rsplit(['/', '\\']).next().unwrap_or_default();
    matches!(name.trim_end_matches(".exe"), "mongod" | "mongos")
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let compatible = if self.is_mongodb() { "" } else { "compatible with MongoDB " };
        write!(f, "{} {compatible}{}, ", self.product, self.version)?;
        match self.arrangement {
            Arrangement::Standalone => f.write_str("standalone: not replicated"),
            Arrangement::ReplicaSet(members) => write!(f, "replica set of {members}"),
            Arrangement::Sharded => f.write_str("sharded"),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what a test needs is there, or the test fails")]
mod tests {
    use mongodb::bson::{Document, RawDocumentBuf, doc};

    use super::*;

    fn server(hello: Document, build: Document, status: Option<Document>) -> Server {
        let raw = |document: Document| RawDocumentBuf::try_from(&document).unwrap();
        let status = status.map(raw);
        Server::of(&raw(hello), &raw(build), status.as_deref())
    }

    #[test]
    fn only_mongodb_is_called_mongodb() {
        let build = || doc! { "version": "7.0.5", "gitVersion": "x", "modules": [] };
        let alone = server(doc! {}, build(), Some(doc! { "process": "mongod" }));
        assert_eq!(alone.to_string(), "MongoDB 7.0.5, standalone: not replicated");
        assert_eq!(alone.durability(), Durability::Committed);
        assert_eq!(server(doc! {}, build(), None), alone, "a user who may not ask for the status");
        let other =
            server(doc! {}, doc! { "version": "7.0.0" }, Some(doc! { "process": "nx_27017" }));
        assert!(other.to_string().starts_with("nx-27017 compatible with MongoDB 7.0.0"), "{other}");
        let other = server(doc! {}, doc! { "version": "7.0.0" }, None);
        assert!(!other.to_string().starts_with("MongoDB"), "{other}");
    }

    #[test]
    fn a_majority_of_three_is_replicated() {
        let hello = |hosts: &[&str]| doc! { "setName": "rs", "hosts": hosts.to_vec() };
        let build = || doc! { "version": "7.0.5", "process": "mongod" };
        let three = server(hello(&["a", "b", "c"]), build(), None);
        assert!(three.has_majority() && three.durability() == Durability::Replicated);
        let one = server(hello(&["a"]), build(), None);
        assert!(one.has_majority() && one.durability() == Durability::Committed);
    }
}
