//! What each level adds to the documents' API.

use std::collections::BTreeMap;

use terrace_core::{Fact, Inspection, Outcome, PartKind, Read, Receipt, Tier};

use super::parts::{self, figure};
use super::{DocumentsFace, Statistics, regional};
use crate::http::schema::{Field, Getter};

/// What L0 has, and others unless they say something else.
pub(super) const PLAIN: DocumentsFace = DocumentsFace {
    endpoints: None,
    written: "Data written successfully",
    sharded: false,
    updated: None,
    missing: "Key not found",
    write_fields: &[],
    read_fields: &[],
    health_fields: &[],
    statistics: &[],
};

/// Single database.
pub static L0: DocumentsFace = PLAIN;

/// Connection pooling.
pub static L1: DocumentsFace = DocumentsFace {
    statistics: &[Statistics {
        path: "/pool-stats",
        summary: "Connections of the pool, and who waits for them",
        fields: POOL,
    }],
    ..PLAIN
};

/// Read cache.
pub static L2: DocumentsFace = DocumentsFace {
    read_fields: &[FROM_CACHE],
    health_fields: &[
        parts::DATABASE,
        parts::cache("cache", |tree| parts::cache_word(parts::far(tree))),
    ],
    statistics: &[Statistics {
        path: "/cache-stats",
        summary: "Hits and misses of the cache",
        fields: CACHE,
    }],
    ..PLAIN
};

/// Read replicas.
pub static L3: DocumentsFace = DocumentsFace {
    written: "Data written successfully to primary",
    read_fields: &[FROM_CACHE, FROM_REPLICA],
    health_fields: &[
        parts::PRIMARY,
        parts::REPLICA,
        parts::cache("cache", |tree| parts::cache_word(parts::far(tree))),
    ],
    statistics: &[Statistics {
        path: "/stats",
        summary: "The cache and the pools of primary and replicas",
        fields: CACHE_AND_REPLICAS,
    }],
    ..PLAIN
};

/// Sharding.
pub static L4: DocumentsFace = DocumentsFace {
    written: "Data written successfully to shard ",
    sharded: true,
    read_fields: &[FROM_CACHE],
    health_fields: &[
        parts::SHARDS,
        parts::cache("cache", |tree| parts::cache_word(parts::far(tree))),
    ],
    statistics: &[Statistics {
        path: "/stats",
        summary: "The cache, and the shards with their connections and records",
        fields: SHARDS,
    }],
    ..PLAIN
};

/// Multi-tier cache.
pub static L5: DocumentsFace = DocumentsFace {
    read_fields: &[CACHE_LEVEL],
    health_fields: &[
        parts::DATABASE,
        parts::cache("l1_cache", |tree| parts::cache_word(parts::near(tree))),
        parts::cache("l2_cache", |tree| parts::cache_word(parts::far(tree))),
    ],
    statistics: &[
        Statistics { path: "/stats", summary: "Both caches and the pool", fields: TWO_CACHES },
        Statistics { path: "/cache-stats", summary: "The same as /stats", fields: TWO_CACHES },
    ],
    ..PLAIN
};

/// Write buffering.
pub static L6: DocumentsFace = DocumentsFace {
    written: "Write queued successfully",
    write_fields: &[QUEUED],
    read_fields: &[FROM_A_CACHE],
    health_fields: &[
        parts::DATABASE,
        parts::cache("cache", |tree| parts::cache_word(parts::far(tree))),
        parts::cache("queue", |tree| parts::cache_word(parts::journal(tree))),
        count("queue_length", "Writes that wait to be applied.", queue_length),
    ],
    statistics: &[Statistics {
        path: "/stats",
        summary: "The cache, the pool and the queue",
        fields: QUEUE,
    }],
    ..PLAIN
};

/// CQRS.
pub static L7: DocumentsFace = DocumentsFace {
    written: "Command written and event published",
    updated: Some("Command updated and event published"),
    missing: "Key not found in read database (may not be projected yet)",
    write_fields: &[EVENT_ID],
    read_fields: &[FROM_READ_DB],
    statistics: &[Statistics {
        path: "/stats",
        summary: "Both sides, and the way between them",
        fields: TWO_SIDES,
    }],
    ..PLAIN
};

/// Global distribution.
pub static L9: DocumentsFace = DocumentsFace {
    missing: "Key not found in any region",
    health_fields: &[
        parts::REGIONS,
        count("total_regions", "How many regions there are.", |tree| {
            regional::regions(tree).count() as u64
        }),
        count("healthy_regions", "How many of them can be read or written.", |tree| {
            regional::regions(tree).filter(|part| regional::is_healthy(part)).count() as u64
        }),
        parts::GEOIP,
    ],
    ..PLAIN
};

const EVENT_ID: Field<Receipt> = Field::new(
    "event_id",
    "The event's place in the log, under which it is published.",
    Getter::Text(|receipt| receipt.event.unwrap_or_default().to_string()),
);

const FROM_READ_DB: Field<Read> = Field::new(
    "from_read_db",
    "Whether the read database answered; else the write database did.",
    Getter::Bool(|read| read.origin.tier == Tier::ReadModel),
);

const TWO_SIDES: &[Field<Inspection>] = &[
    count("write_db_pool_size", "Open connections to the write database.", |tree| {
        figure(write_side(tree).and_then(|side| side.find_kind(PartKind::Pool)), "pool_size")
    }),
    count("read_db_pool_size", "Open connections to the read database.", |tree| {
        let side = tree.find_kind(PartKind::ReadModel);
        let pool = side.and_then(|side| side.find_kind(PartKind::Pool));
        figure(pool.or(side), "pool_size")
    }),
    count("events_published", "Commands that this instance has written to the log.", |tree| {
        figure(tree.find("cqrs"), "events_published")
    }),
    count("events_projected", "Events that this instance has projected.", |tree| {
        figure(tree.find("projector"), "changes")
    }),
    count("read_db_records", "Records in the read database.", |tree| {
        figure(tree.find_kind(PartKind::ReadModel), "records")
    }),
    count("write_db_records", "Records in the write database.", |tree| {
        figure(write_side(tree), "records")
    }),
];

fn write_side(tree: &Inspection) -> Option<&Inspection> {
    tree.find_kind(PartKind::Database)
}

const QUEUED: Field<Receipt> = Field::new(
    "queued",
    "Whether it waits to be applied; false when it was applied before the answer.",
    Getter::Bool(|receipt| receipt.outcome == Outcome::Queued),
);

const FROM_A_CACHE: Field<Read> = Field::new(
    "from_cache",
    "Whether a cache answered; a write that waits is no cache.",
    Getter::Bool(|read| read.origin.is_cache()),
);

const FROM_CACHE: Field<Read> = Field::new(
    "from_cache",
    "Whether a cache answered.",
    Getter::Bool(|read| read.origin.is_cache()),
);

const FROM_REPLICA: Field<Read> = Field::new(
    "from_replica",
    "Whether a replica answered; false for what came from a cache.",
    Getter::Bool(|read| read.origin.replica.is_some()),
);

const CACHE_LEVEL: Field<Read> = Field::new(
    "cache_level",
    "What answered: the near cache (L1), the far cache (L2) or the database (L3). A missing key \
     says L3.",
    Getter::Word(&["L1", "L2", "L3"], |read| match read.origin.tier {
        _ if read.record.is_none() => "L3",
        Tier::Near => "L1",
        Tier::Far => "L2",
        _ => "L3",
    }),
);

const POOL: &[Field<Inspection>] = &[
    count("pool_size", "Open connections.", |tree| {
        figure(tree.find_kind(PartKind::Pool), "pool_size")
    }),
    count("pool_available", "Connections that nobody uses.", |tree| {
        figure(tree.find_kind(PartKind::Pool), "pool_available")
    }),
    count("requests_waiting", "Requests that wait for a connection.", |tree| {
        figure(tree.find_kind(PartKind::Pool), "requests_waiting")
    }),
    count("usage_ms", "Milliseconds for which connections have been in use, added up.", |tree| {
        figure(tree.find_kind(PartKind::Pool), "usage_ms")
    }),
];

const CACHE: &[Field<Inspection>] = &[
    flag("available", "Whether the cache can be reached.", |tree| parts::is_up(parts::far(tree))),
    count("hits", "Reads that the cache answered.", far_hits),
    count("misses", "Reads that went to the database.", far_misses),
    count("keys", "Entries in the cache.", far_keys),
    percent("hit_rate", "Hits in a hundred reads.", |tree| {
        parts::hit_rate(far_hits(tree), far_misses(tree))
    }),
];

const CACHE_AVAILABLE: Field<Inspection> =
    flag("cache_available", "Whether the cache can be reached.", |tree| {
        parts::is_up(parts::far(tree))
    });
const CACHE_HITS: Field<Inspection> =
    count("cache_hits", "Reads that the cache answered.", far_hits);
const CACHE_MISSES: Field<Inspection> =
    count("cache_misses", "Reads that went to a database.", far_misses);
const CACHE_KEYS: Field<Inspection> = count("cache_keys", "Entries in the cache.", far_keys);
const CACHE_HIT_RATE: Field<Inspection> =
    percent("cache_hit_rate", "Hits in a hundred reads.", |tree| {
        parts::hit_rate(far_hits(tree), far_misses(tree))
    });

const CACHE_AND_REPLICAS: &[Field<Inspection>] = &[
    CACHE_AVAILABLE,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_KEYS,
    CACHE_HIT_RATE,
    count("primary_pool_size", "Open connections to the primary.", |tree| {
        parts::pool_size(tree, PartKind::Primary)
    }),
    count("replica_pool_size", "Open connections to all replicas.", |tree| {
        parts::pool_size(tree, PartKind::Replica)
    }),
];

const SHARDS: &[Field<Inspection>] = &[
    CACHE_AVAILABLE,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_KEYS,
    CACHE_HIT_RATE,
    count("num_shards", "How many shards there are.", |tree| {
        figure(tree.find("shard-router"), "shards")
    }),
    Field::new(
        "shard_pool_sizes",
        "Open connections to each shard.",
        Getter::Counts(|tree| {
            parts::by_shard(tree, |shard| figure(shard.find_kind(PartKind::Pool), "pool_size"))
        }),
    ),
    Field::new(
        "shard_distribution",
        "Records of each shard, at most a second old; of large ones, the last estimate. While slots \
         move, also what is on its way.",
        Getter::Counts(|tree| parts::by_shard(tree, |shard| figure(Some(shard), "records"))),
    ),
    Field::new(
        "shard_reads",
        "Reads of each shard through this instance.",
        Getter::Counts(|tree| parts::by_shard(tree, |shard| figure(Some(shard), "reads"))),
    ),
    Field::new(
        "shard_writes",
        "Writes to each shard through this instance.",
        Getter::Counts(|tree| parts::by_shard(tree, |shard| figure(Some(shard), "writes"))),
    ),
    Field::new(
        "hot_keys",
        "The keys asked for most, and about how often, among the calls of this instance.",
        Getter::Counts(|tree| {
            match tree.find("shard-router").and_then(|router| router.known("hot_keys")) {
                Some(Fact::Numbers(keys)) => keys.iter().cloned().collect(),
                _ => BTreeMap::new(),
            }
        }),
    ),
];

const QUEUE: &[Field<Inspection>] = &[
    CACHE_AVAILABLE,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_KEYS,
    CACHE_HIT_RATE,
    count("db_pool_size", "Open connections to the database.", |tree| {
        figure(tree.find_kind(PartKind::Pool), "pool_size")
    }),
    count("queue_length", "Writes that wait to be applied.", queue_length),
    count("writes_queued", "Writes that this instance has accepted.", |tree| {
        figure(tree.find("write-buffer"), "writes_queued")
    }),
    count("writes_processed", "Writes that this instance has applied.", |tree| {
        figure(tree.find("write-buffer"), "writes_processed")
    }),
];

const TWO_CACHES: &[Field<Inspection>] = &[
    flag("l1_cache_available", "Whether the near cache is in use.", |tree| {
        parts::is_up(parts::near(tree))
    }),
    count("l1_cache_size", "Entries in the near cache.", |tree| figure(parts::near(tree), "keys")),
    count(
        "l1_cache_max_size",
        "The most entries of the near cache; its most bytes where their number has no bound.",
        |tree| {
            let most = parts::near(tree).and_then(|near| near.number("max_keys"));
            most.unwrap_or_else(|| figure(parts::near(tree), "max_bytes"))
        },
    ),
    count("l1_cache_hits", "Reads that the near cache answered.", near_hits),
    count("l1_cache_misses", "Reads that went on to the far cache.", near_misses),
    percent("l1_hit_rate", "Hits in a hundred reads of the near cache.", |tree| {
        parts::hit_rate(near_hits(tree), near_misses(tree))
    }),
    flag("l2_cache_available", "Whether the far cache can be reached.", |tree| {
        parts::is_up(parts::far(tree))
    }),
    count("l2_cache_keys", "Entries in the far cache.", far_keys),
    count("l2_cache_hits", "Reads that the far cache answered.", far_hits),
    count("l2_cache_misses", "Reads that went to the database.", far_misses),
    percent("l2_hit_rate", "Hits in a hundred reads of the far cache.", |tree| {
        parts::hit_rate(far_hits(tree), far_misses(tree))
    }),
    count("db_pool_size", "Open connections to the database.", |tree| {
        figure(tree.find_kind(PartKind::Pool), "pool_size")
    }),
    count("total_hits", "Reads that either cache answered.", |tree| {
        near_hits(tree) + far_hits(tree)
    }),
    count("total_misses", "Reads that no cache answered.", far_misses),
    percent("overall_hit_rate", "Reads in a hundred that either cache answered.", |tree| {
        parts::hit_rate(near_hits(tree) + far_hits(tree), far_misses(tree))
    }),
];

const fn count(
    name: &'static str,
    meaning: &'static str,
    value: fn(&Inspection) -> u64,
) -> Field<Inspection> {
    Field::new(name, meaning, Getter::Count(value))
}

const fn percent(
    name: &'static str,
    meaning: &'static str,
    value: fn(&Inspection) -> f64,
) -> Field<Inspection> {
    Field::new(name, meaning, Getter::Percent(value))
}

const fn flag(
    name: &'static str,
    meaning: &'static str,
    value: fn(&Inspection) -> bool,
) -> Field<Inspection> {
    Field::new(name, meaning, Getter::Bool(value))
}

fn queue_length(tree: &Inspection) -> u64 {
    figure(tree.find("write-buffer"), "queue_length")
}

fn near_hits(tree: &Inspection) -> u64 {
    figure(parts::near(tree), "hits")
}

fn near_misses(tree: &Inspection) -> u64 {
    figure(parts::near(tree), "misses")
}

fn far_hits(tree: &Inspection) -> u64 {
    figure(tree.find("cache-aside"), "hits")
}

fn far_misses(tree: &Inspection) -> u64 {
    figure(tree.find("cache-aside"), "misses")
}

fn far_keys(tree: &Inspection) -> u64 {
    figure(parts::far(tree), "keys")
}
