//! What each figure of a part means: the help of `/metrics`, and `docs/metrics.md`.

/// Figures that mean the same wherever they stand.
const EVERYWHERE: [(&str, &str); 49] = [
    ("applied", "Writes that were applied to the database."),
    ("batches", "Batches that were applied."),
    ("breaker_opened", "Times it was left alone after failures."),
    ("breaker_probes", "Calls that tried whether it is back."),
    ("breaker_refused", "Calls that were not made because it is left alone."),
    ("bytes", "Size of what it holds."),
    ("bypassed", "Reads that had to know more than what was held, and went on."),
    ("changes", "Changes of the log that were applied."),
    ("conflicts", "Lost updates that are listed."),
    ("connections", "Open connections."),
    ("dead", "Writes that could not be applied and wait for a person."),
    ("errors", "Calls that failed."),
    ("evictions", "Records that gave way to others."),
    ("fills", "Records that were put into it."),
    ("hits", "Keys that were found."),
    ("in_use", "Calls that are under way."),
    ("invalidations", "Keys that a write made it forget."),
    ("keys", "Keys that it holds."),
    ("limit", "Calls that may be under way at once."),
    ("malformed", "Entries that could not be read, and were taken for missing."),
    ("max_bytes", "The most bytes that it holds."),
    ("max_keys", "The most keys that it holds."),
    ("misses", "Keys that were not found."),
    ("number", "Its place in the settings, from 0 on."),
    ("parked", "Keys whose changes could not be applied and wait for a person."),
    ("pool_available", "Connections that may be used at once."),
    ("pool_size", "Connections that are open."),
    ("read_batches", "Reads that were sent, several keys in one."),
    ("read_keys", "Keys that were asked for."),
    ("reads", "Reads."),
    ("reconnects", "Times a lost connection was replaced."),
    ("records", "Records that it has."),
    ("rejected", "Calls that were turned away because too many waited."),
    ("requests", "Requests that were answered."),
    ("requests_waiting", "Calls that wait for a connection."),
    ("retries", "Tries after a first one that failed."),
    ("scans", "Lists."),
    ("splits", "Batches that were refused whole and tried again in parts."),
    ("usage_ms", "Time for which connections were in use."),
    ("waiting", "Calls that wait for their turn."),
    ("waiting_bytes", "Size of what waits."),
    ("waiting_keys", "Keys that wait to be read."),
    ("waiting_posts", "Posts that wait."),
    ("waiting_writes", "Writes that wait."),
    ("withdrawn", "Calls that left before their turn: too late, or nobody waits for them."),
    ("write_batches", "Writes that were sent, several keys in one."),
    ("writes", "Writes."),
    ("written_keys", "Keys that were written."),
    ("call_time", "How long calls took."),
];

/// Figures of one part.
const OF_A_PART: [(&str, &str, &str); 98] = [
    ("authentication", "keys", "Keys of clients that are in force."),
    ("authentication", "refused", "Requests without a valid key, or without the right to do this."),
    ("cache-aside", "raises", "Times nothing cached before was believed any more."),
    ("canary", "compared", "Mirrored reads whose answers were compared."),
    ("canary", "differs_failed", "Mirrored reads that the canary could not answer."),
    ("canary", "differs_missing", "Mirrored reads of which one stack has no record."),
    ("canary", "differs_value", "Mirrored reads with one version and two values."),
    ("canary", "differs_version", "Mirrored reads with two versions."),
    ("canary", "left_out", "Mirrored reads that were left out because too many waited."),
    ("canary", "per_mille", "Clients in a thousand that the canary serves."),
    ("canary", "windows", "Times there were enough requests to compare."),
    ("cohort", "failed_reads", "Reads that were answered 5xx."),
    ("cohort", "failed_writes", "Writes that were answered 5xx."),
    ("cohort", "read_time", "How long reads took."),
    ("cohort", "write_time", "How long writes took."),
    ("coalesce", "reads_in_flight", "Reads that were sent and are not answered."),
    ("coalesce", "writes_in_flight", "Writes that were sent and are not answered."),
    ("concurrency-limit", "in_use_by_lists", "Lists that are under way."),
    ("concurrency-limit", "lists", "Lists that have had their turn."),
    ("concurrency-limit", "lowered", "Times the limit went down."),
    ("concurrency-limit", "shed", "Calls that gave way to others of a higher class."),
    ("cqrs", "command_side_reads", "Reads that had to ask the database that takes writes."),
    ("cqrs", "events_published", "Events that were published to the stream."),
    ("cqrs", "uncounted_reads", "Reads that are missing from the counts of reads."),
    (
        "fill-on-write",
        "filled",
        "Records that were in the caches before the answer to their write.",
    ),
    ("fill-on-write", "not_filled", "Records that were not."),
    ("flusher", "superseded", "Writes that a newer one of the same key made needless."),
    ("follower", "behind", "For how long the oldest change that is held back has waited."),
    ("follower", "lag", "From a change to its effect."),
    ("front-cache", "not_told", "Purges that were given up."),
    ("front-cache", "purged", "Purges that were answered."),
    ("geo-router", "fallbacks", "Reads that another region answered."),
    ("geo-router", "regions", "Regions."),
    ("memory-cache", "refused", "Records that were not put into it, because they may be old."),
    ("mongodb", "calls_running", "Calls that are under way."),
    ("mongodb", "calls_waiting", "Calls that wait for their turn."),
    ("mongodb", "unreadable_documents", "Documents that could not be read."),
    ("near-cache", "flushes", "Times everything was forgotten."),
    ("near-cache", "gaps", "Times invalidations may have been missed."),
    ("observe", "errors_corrupt", "Calls that met damaged data."),
    ("observe", "errors_deadline_exceeded", "Calls whose time was up."),
    ("observe", "errors_forbidden", "Calls that were not allowed."),
    ("observe", "errors_internal", "Calls that met a defect of Terrace."),
    ("observe", "errors_invalid_input", "Calls that were wrong."),
    (
        "observe",
        "errors_outcome_unknown",
        "Writes of which nobody knows whether they were applied.",
    ),
    ("observe", "errors_overloaded", "Calls that were turned away because of too much work."),
    ("observe", "errors_rate_limited", "Calls over a rate limit."),
    ("observe", "errors_unauthenticated", "Calls without a valid key."),
    ("observe", "errors_unavailable", "Calls that met something that is down."),
    ("observe", "from_far", "Keys that the far cache answered."),
    ("observe", "from_journal", "Keys that the journal answered."),
    ("observe", "from_near", "Keys that the near cache answered."),
    ("observe", "from_primary", "Keys that the database, or the primary, answered."),
    ("observe", "from_read_model", "Keys that the read model answered."),
    ("observe", "from_replica", "Keys that a replica answered."),
    ("observe", "from_shard", "Keys that a shard answered."),
    ("observe", "read_time", "How long reads took lately."),
    ("observe", "scan_time", "How long lists took lately."),
    ("observe", "write_time", "How long writes took lately."),
    ("postgres", "post_batches", "Posts that were sent, several in one."),
    ("postgres", "posts", "Posts to the ledger."),
    ("rate-limit", "admitted", "Requests that were let through."),
    ("rate-limit", "refused", "Requests that were not."),
    ("replica-router", "fallbacks", "Reads that went to the primary instead."),
    ("replica-router", "hedges", "Reads that a second replica was asked for."),
    ("replica-router", "hedges_won", "Those that the second one answered first."),
    ("replica-router", "primary_reads", "Keys that were read from the primary."),
    ("replica-router", "refused", "Reads that nobody could answer as asked."),
    ("replica-router", "replica_reads", "Keys that were read from replicas."),
    ("replica-router", "retried", "Reads that went to another server after a failure."),
    ("replica-router", "stale", "Times a replica was passed by because it was too far behind."),
    (
        "replica-router",
        "token_waits",
        "Reads that waited for a replica to have what a token asks for.",
    ),
    ("retry", "budget", "Retries that can be afforded now."),
    ("retry", "recovered", "Calls that a retry saved."),
    ("retry", "unaffordable", "Retries that were left out, because too many calls fail."),
    ("server", "lag", "How far it is behind the primary."),
    ("server", "outstanding", "Reads that are under way."),
    ("shard", "slots", "Slots of keys that it has."),
    ("shard-router", "moved", "Calls that went on with a new map of the slots."),
    ("shard-router", "shards", "Shards."),
    ("shard-router", "slots_on_their_way", "Slots that move to another shard."),
    ("single-flight", "keys_in_flight", "Keys that are being read."),
    ("single-flight", "shared", "Reads that took the answer to another one."),
    ("sqlite", "commits", "Transactions that were committed."),
    ("sqlite", "file", "Size of the file."),
    ("timeout", "cut_off", "Calls that were ended because their time was up."),
    ("tls", "expires_in", "Until the certificate is no longer good."),
    ("traces", "dropped", "Spans that were lost: too many waited, or the collector took none."),
    ("traces", "exported", "Spans that the collector took."),
    ("write-buffer", "catch_ups", "Times the journal was read again after a gap."),
    ("write-buffer", "keys_waiting", "Keys whose writes wait."),
    ("write-buffer", "oldest", "How long the oldest write has waited."),
    ("write-buffer", "queue_bytes", "Size of the writes that wait."),
    ("write-buffer", "queue_length", "Writes that wait."),
    ("write-buffer", "writes_direct", "Writes that went to the database at once."),
    ("write-buffer", "writes_processed", "Writes that were applied, or need not be."),
    ("write-buffer", "writes_queued", "Writes that the journal took."),
    ("write-buffer", "writes_refused", "Writes that were refused because too much waits."),
];

/// What a figure of a part means.
pub(super) fn meaning(part: &str, figure: &str) -> Option<&'static str> {
    let of_part = OF_A_PART.iter().find(|(of, name, _)| *of == part && *name == figure);
    let everywhere = || EVERYWHERE.iter().find(|(name, _)| *name == figure);
    of_part.map(|(.., meaning)| *meaning).or_else(|| everywhere().map(|(_, meaning)| *meaning))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `docs/metrics.md`.
    fn reference() -> String {
        let mut text = "# Metrics\n\n\
            Terrace's own metrics are named `terrace_<part>_<figure>`, with the unit at the end: `_total` counts \n\
            since the start, `_seconds` and `_bytes` are units, `_p50` and `_p99` the median and the 99th \n\
            percentile of late. `which` tells parts of one name apart. What follows a change log is \n\
            `terrace_follower_<figure>` with a label `part`. `terrace_part_status` is 0 for a part that is \n\
            healthy, 1 degraded, 2 down. The names of the documents stand on the page of level 10.\n\
            `TERRACE_BLESS=1 cargo test -p terrace reference_of_metrics` writes this page.\n\n\
            | part | figure | meaning |\n|---|---|---|\n"
            .replace(" \n", "\n");
        let everywhere = EVERYWHERE.iter().map(|(figure, meaning)| ("any", figure, meaning));
        let of_parts = OF_A_PART.iter().map(|(part, figure, meaning)| (*part, figure, meaning));
        for (part, figure, meaning) in everywhere.chain(of_parts) {
            text.push_str(&format!("| {part} | `{figure}` | {meaning} |\n"));
        }
        text
    }

    #[test]
    fn the_reference_of_metrics_is_what_their_help_says() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md");
        let now = reference();
        if std::env::var_os("TERRACE_BLESS").is_some() {
            std::fs::write(page, &now).unwrap();
        }
        let written = std::fs::read_to_string(page).unwrap();
        assert!(written == now, "run again with TERRACE_BLESS=1, which writes docs/metrics.md");
    }
}
