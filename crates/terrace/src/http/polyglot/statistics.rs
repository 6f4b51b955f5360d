//! `GET /stats` of level 8, and what the level adds to `/health`.

use std::sync::Arc;

use hyper::{Method, StatusCode};
use terrace_core::{Fact, Inspection, Ledger as _, PartKind};

use super::{Polyglot, documents_part, ledger_part};
use crate::http::call::Call;
use crate::http::endpoint::{Endpoint, Needs};
use crate::http::face::Whole;
use crate::http::json::Object;
use crate::http::operations::HealthFields;
use crate::http::reply::{self, Answer};
use crate::http::schema::{Field, Getter, Shape, object};

struct Statistics {
    polyglot: Arc<Polyglot>,
    whole: Arc<dyn Whole>,
}

pub(super) fn endpoint(polyglot: &Arc<Polyglot>, whole: &Arc<dyn Whole>) -> Endpoint {
    let answer = object(&[
        ("postgres_pool_size", Shape::Count.schema("Open connections to the ledger.")),
        ("mongodb_connections", Shape::Count.schema("Open connections to the document store.")),
        ("cache_keys", Shape::Count.schema("Entries of this level in the cache.")),
        ("total_transactions", Shape::MaybeCount.schema("Null while the ledger is down.")),
        ("total_documents", Shape::MaybeCount.schema("Null while the document store is down.")),
    ]);
    let port = Statistics { polyglot: Arc::clone(polyglot), whole: Arc::clone(whole) };
    Endpoint::new(&Arc::new(port), Method::GET, "/stats", |statistics, call| {
        Box::pin(numbers(statistics, call))
    })
    .open_to(Needs::Figures)
    .summary("Documents", "Connections, cached entries, and exact counts")
    .answers(StatusCode::OK, "The numbers.", answer.build(), &[])
}

async fn numbers(statistics: &Statistics, call: &mut Call) -> Answer {
    let Statistics { polyglot, whole } = statistics;
    let transactions = async {
        match polyglot.ledger.get() {
            Ok(ledger) => call.in_time(ledger.count()).await.ok(),
            Err(_) => None,
        }
    };
    let documents = async { call.in_time(polyglot.documents.count()).await.ok() };
    let (tree, transactions, documents) = tokio::join!(whole.inspect(), transactions, documents);
    let connections = |part: Option<&Inspection>| {
        let database = part.and_then(|part| part.find_kind(PartKind::Database));
        let pool = part.and_then(|part| part.find_kind(PartKind::Pool)).or(database);
        let number = |name| pool.and_then(|pool| pool.number(name));
        number("pool_size").or_else(|| number("connections")).unwrap_or(0)
    };
    let keys = [ledger_part(&tree), documents_part(&tree)].into_iter().flatten();
    let keys = keys.filter_map(|part| part.find_kind(PartKind::Cache)?.number("keys"));
    Ok(reply::json(
        Object::with_capacity(192)
            .field("postgres_pool_size", &connections(ledger_part(&tree)))
            .field("mongodb_connections", &connections(documents_part(&tree)))
            .field("cache_keys", &keys.sum::<u64>())
            .field("total_transactions", &transactions)
            .field("total_documents", &documents),
    ))
}

/// What it adds to `/health`.
pub(super) const HEALTH: HealthFields = &[
    Field::new(
        "databases",
        "The engines that the documents name.",
        Getter::Texts(|_| ["PostgreSQL", "MongoDB", "Redis"].map(str::to_owned).into()),
    ),
    Field::new(
        "engines",
        "The engines that are really used, in the same order.",
        Getter::Texts(|tree| {
            let engine = |part: Option<&Inspection>, kind| {
                let part = part.and_then(|part| part.find_kind(kind));
                part.map_or_else(|| "not open".to_owned(), engine)
            };
            let cache = [ledger_part(tree), documents_part(tree)].into_iter().flatten();
            let cache = cache.into_iter().find(|part| part.find_kind(PartKind::Cache).is_some());
            vec![
                engine(ledger_part(tree), PartKind::Database),
                engine(documents_part(tree), PartKind::Database),
                engine(cache, PartKind::Cache),
            ]
        }),
    ),
];

/// The name of an engine for people.
fn engine(part: &Inspection) -> String {
    if let Some(Fact::Text(server)) = part.known("server") {
        return server.clone();
    }
    match part.name {
        "postgres" => "PostgreSQL".to_owned(),
        "sqlite" => "SQLite".to_owned(),
        "redis" => "Redis".to_owned(),
        "memory-cache" => "memory".to_owned(),
        other => other.to_owned(),
    }
}
