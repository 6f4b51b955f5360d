//! The parts of a stack that the documents' API names, found in its inspection.

use std::collections::BTreeMap;

use terrace_core::{Fact, Inspection, PartKind, Status};

use super::regional;

use crate::http::schema::{Field, Getter};

/// `database: healthy | unhealthy`.
pub(super) const DATABASE: Field<Inspection> = Field::new(
    "database",
    "Whether the database can be read or written.",
    Getter::Word(&["healthy", "unhealthy"], |tree| {
        // A stack without a database in it is as well as its top says.
        let leaf = tree.find_kind(PartKind::Database).unwrap_or(tree);
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

/// `regions: {us-east: bool}`.
pub(super) const REGIONS: Field<Inspection> = Field::new(
    "regions",
    "Whether each region can be read or written.",
    Getter::Flags(|tree| {
        let regions = regional::regions(tree);
        regions.map(|part| (part.instance.clone(), regional::is_healthy(part))).collect()
    }),
);

/// `geoip: healthy | unavailable | unused`.
pub(super) const GEOIP: Field<Inspection> = Field::new(
    "geoip",
    "Whether clients are placed by their addresses.",
    Getter::Word(&["healthy", "unavailable", "unused"], |tree| match tree.find("geoip") {
        None => "unused",
        Some(places) if places.status == Status::Healthy => "healthy",
        Some(_) => "unavailable",
    }),
);

/// Whether regions follow each other.
pub(super) fn replicates(tree: &Inspection) -> bool {
    tree.find("geo-router").and_then(|router| router.known("replicates")) == Some(&Fact::Flag(true))
}

/// Something of each shard, by their names.
pub(super) fn by_shard<T>(tree: &Inspection, of: impl Fn(&Inspection) -> T) -> BTreeMap<String, T> {
    let shards = tree.find("shard-router").map(|router| &router.children);
    let shards = shards.into_iter().flatten();
    shards.map(|shard| (format!("shard_{}", figure(Some(shard), "number")), of(shard))).collect()
}

/// A cache as a field of `/health`.
pub(super) const fn cache(
    name: &'static str,
    word: fn(&Inspection) -> &'static str,
) -> Field<Inspection> {
    let words = Getter::Word(&["healthy", "unavailable"], word);
    Field::new(name, "Whether the cache can be reached.", words)
}

/// `primary: healthy | unhealthy`.
pub(super) const PRIMARY: Field<Inspection> = Field::new(
    "primary",
    "Whether the server that takes the writes answers.",
    Getter::Word(&["healthy", "unhealthy"], |tree| server_word(tree, PartKind::Primary)),
);

/// `replica: healthy | unhealthy`.
pub(super) const REPLICA: Field<Inspection> = Field::new(
    "replica",
    "Whether any replica answers reads.",
    Getter::Word(&["healthy", "unhealthy"], |tree| server_word(tree, PartKind::Replica)),
);

fn server_word(tree: &Inspection, kind: PartKind) -> &'static str {
    let up = servers(tree, kind).any(|server| server.status != Status::Down);
    if up { "healthy" } else { "unhealthy" }
}

/// Open connections to all servers of this kind.
pub(super) fn pool_size(tree: &Inspection, kind: PartKind) -> u64 {
    servers(tree, kind).map(|server| figure(server.find_kind(PartKind::Pool), "pool_size")).sum()
}

fn servers(tree: &Inspection, kind: PartKind) -> impl Iterator<Item = &Inspection> {
    let router = tree.find("replica-router");
    let all = router.into_iter().flat_map(|router| &router.children);
    all.filter(move |server| server.kind == kind)
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

/// The shared cache: below its layer, because the near cache is made of one, too.
pub(super) fn far(tree: &Inspection) -> Option<&Inspection> {
    tree.find("cache-aside")?.find_kind(PartKind::Cache)
}

/// The journal of accepted writes.
pub(super) fn journal(tree: &Inspection) -> Option<&Inspection> {
    tree.find_kind(PartKind::Journal)
}

/// A number of a part; 0 when there is no such part or number.
pub(super) fn figure(part: Option<&Inspection>, name: &str) -> u64 {
    let Some(part) = part else { return 0 };
    let own = part.number(name);
    own.or_else(|| part.find("memory-cache").and_then(|cache| cache.number(name))).unwrap_or(0)
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
