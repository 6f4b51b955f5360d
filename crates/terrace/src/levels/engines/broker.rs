//! What belongs to a database on a broker that others use, too.

use terrace_core::history::lineage;

/// The name of what a database has on a broker: its journal, its stream of events. It ends with the
/// database's lineage, so that a copy of the database on the same broker, with the same settings, has
/// another; and it stays over a failover.
pub(super) fn broker_name(prefix: &str, between: char, history: &str) -> String {
    format!("{prefix}{between}{}", lineage(history))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_keeps_the_name_and_a_copy_has_another() {
        let name = |history| broker_name("terrace-journal", ':', history);
        assert_eq!(name("pg-3f2a1b4c5d6e.1"), "terrace-journal:pg-3f2a1b4c5d6e");
        assert_eq!(name("pg-3f2a1b4c5d6e.1"), name("pg-3f2a1b4c5d6e.2"));
        assert_ne!(name("pg-3f2a1b4c5d6e.1"), name("pg-aaaaaaaaaaaa.1"));
        assert_eq!(name("db-3f2a1b4c"), "terrace-journal:db-3f2a1b4c", "of today");
    }
}
