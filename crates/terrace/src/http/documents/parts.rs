//! The parts of a stack that the documents' API names, found in its inspection.

use std::collections::BTreeMap;

use terrace_core::{Inspection, Status};

use crate::http::schema::{Field, Getter};

/// `database: healthy | unhealthy`.
pub(super) const DATABASE: Field<Inspection> = Field::new(
    "database",
    "Whether the database can be read or written.",
    Getter::Word(&["healthy", "unhealthy"], |tree| {
        // A stack without a leaf of these names is as well as its top says.
        let leaf = DATABASES.iter().find_map(|name| tree.find(name)).unwrap_or(tree);
        if leaf.status == Status::Down { "unhealthy" } else { "healthy" }
    }),
);

/// `shards: {shard_0: healthy | unhealthy}`.
pub(super) const SHARDS: Field<Inspection> = Field::new(
    "shards",
    "Whether each shard can be read or written.",
    Getter::Words(&["healthy", "unhealthy"], |tree| {
        by_shard(tree, |shard| match shard.status {
            Status::Down => "unhealthy",
            _ => "healthy",
        })
    }),
);

/// Something of each shard, by their names.
pub(super) fn by_shard<T>(tree: &Inspection, of: impl Fn(&Inspection) -> T) -> BTreeMap<String, T> {
    let shards = tree.find("shard-router").map(|router| &router.children);
    let shards = shards.into_iter().flatten();
    shards.map(|shard| (format!("shard_{}", figure(Some(shard), "number")), of(shard))).collect()
}

/// What leaf stores call themselves.
const DATABASES: [&str; 3] = ["postgres", "sqlite", "memory"];

/// A cache as a field of `/health`.
pub(super) const fn cache(
    name: &'static str,
    word: fn(&Inspection) -> &'static str,
) -> Field<Inspection> {
    let words = Getter::Word(&["healthy", "unavailable"], word);
    Field::new(name, "Whether the cache can be reached.", words)
}

/// One of the servers of a level with replicas, as a field of `/health`.
pub(super) const fn server(name: &'static str, meaning: &'static str) -> Field<Inspection> {
    let word: fn(&Inspection) -> &'static str = match name.as_bytes()[0] {
        b'p' => |tree| server_word(tree, "primary"),
        _ => |tree| server_word(tree, "replica"),
    };
    Field::new(name, meaning, Getter::Word(&["healthy", "unhealthy"], word))
}

fn server_word(tree: &Inspection, name: &str) -> &'static str {
    let up = servers(tree, name).any(|server| server.status != Status::Down);
    if up { "healthy" } else { "unhealthy" }
}

/// Open connections to all servers of this name.
pub(super) fn pool_size(tree: &Inspection, name: &str) -> u64 {
    servers(tree, name).map(|server| figure(server.find("pool"), "pool_size")).sum()
}

fn servers<'t>(tree: &'t Inspection, name: &str) -> impl Iterator<Item = &'t Inspection> {
    let router = tree.find("replica-router");
    let all = router.into_iter().flat_map(|router| &router.children);
    all.filter(move |server| server.name == name)
}

/// The word for a cache.
pub(super) fn cache_word(part: Option<&Inspection>) -> &'static str {
    if is_up(part) { "healthy" } else { "unavailable" }
}

/// Whether a part is there and up.
pub(super) fn is_up(part: Option<&Inspection>) -> bool {
    part.is_some_and(|part| part.status != Status::Down)
}

/// The cache in this process.
pub(super) fn near(tree: &Inspection) -> Option<&Inspection> {
    tree.find("near-cache")
}

/// The shared cache. It is looked for below its layer, because the near cache may be made of the
/// same part.
pub(super) fn far(tree: &Inspection) -> Option<&Inspection> {
    let layer = tree.find("cache-aside")?;
    layer.find("redis").or_else(|| layer.find("memory-cache"))
}

/// The journal of accepted writes.
pub(super) fn journal(tree: &Inspection) -> Option<&Inspection> {
    JOURNALS.iter().find_map(|name| tree.find(name))
}

/// What journals call themselves.
const JOURNALS: [&str; 4] = ["redis-journal", "sqlite-journal", "nats-journal", "memory-journal"];

/// A number of a part; 0 when there is no such part or number.
pub(super) fn figure(part: Option<&Inspection>, name: &str) -> u64 {
    let Some(part) = part else { return 0 };
    let own = part.figure(name);
    own.or_else(|| part.find("memory-cache").and_then(|cache| cache.figure(name))).unwrap_or(0)
}

/// Hits in a hundred; 0 before the first read.
pub(super) fn hit_rate(hits: u64, misses: u64) -> f64 {
    let total = hits + misses;
    if total == 0 {
        return 0.0;
    }
    #[expect(clippy::cast_precision_loss, reason = "two decimals of a ratio need no more")]
    let share = hits as f64 / total as f64;
    share * 100.0
}
