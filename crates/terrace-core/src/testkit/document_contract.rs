//! The properties that every [`Documents`] keeps.
//!
//! The macro [`document_contract!`](crate::document_contract) makes a test of each, and of those
//! properties of every [`Store`](crate::Store) that hold where values are documents and batches are not atomic.

mod as_records;
mod content;
mod selections;
mod writes;

use std::sync::Arc;

pub use as_records::as_records;
pub use content::*;
pub use selections::*;
pub use writes::*;

use super::{Fixture, key, value};
use crate::{Documents, Key, Page, ReadOptions, Scan, Selection, StoreExt};

/// Documents under test.
pub type DocumentsFixture = Fixture<dyn Documents>;

/// Makes one test of each property of the [`Documents`] contract, in the modules `documents` and
/// `records`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`DocumentsFixture`](crate::testkit::DocumentsFixture).
#[macro_export]
macro_rules! document_contract {
    ($factory:path) => {
        mod documents {
            use super::*;
            $crate::each_property! { $factory, document_contract:
                documents_come_back_as_they_were_written,
                names_that_mean_something_elsewhere_are_plain,
                what_no_engine_keeps_is_refused,
                a_field_is_found_by_its_value,
                words_are_found_in_the_latest_content,
                selections_are_paged_and_take_a_prefix,
                every_document_is_counted_once,
                a_selection_is_asked_as_a_read_is,
                versions_grow_across_deletions,
                first_writes_at_once_make_one_document,
                a_repeat_after_another_write_changes_nothing,
                a_dropped_write_is_whole_or_not_there,
            }
        }
        mod records {
            use super::*;

            async fn as_records() -> $crate::testkit::StoreFixture {
                $crate::testkit::document_contract::as_records($factory().await)
            }

            $crate::each_property! { as_records, store_contract:
                a_missing_key_has_no_record,
                a_record_is_read_back_and_replaced,
                a_deleted_record_is_gone_and_comes_back_newer,
                keys_of_every_kind_are_kept_apart,
                values_from_empty_to_a_mebibyte_are_kept,
                answers_come_in_the_order_asked,
                no_keys_and_no_writes_are_no_work,
                a_batch_may_write_a_key_many_times,
                a_batch_of_a_thousand_is_one_batch,
                a_read_stops_at_its_budget,
                absent_holds_only_without_a_record,
                a_version_holds_only_while_it_is_current,
                a_failed_precondition_stops_no_other_write,
                a_scan_answers_byte_order_and_skips_the_deleted,
                a_scan_pages_through_everything_once,
                a_scan_takes_a_prefix_literally,
                a_page_ends_where_its_values_are_many_bytes,
                concurrent_writers_are_ordered_by_version,
                concurrent_increments_are_not_lost,
                an_idempotent_request_is_applied_once,
                a_passed_deadline_changes_nothing,
                a_write_is_seen_by_a_strong_read_and_by_its_token,
                a_closed_store_says_so,
                an_inspection_is_healthy_and_named,
            }
        }
    };
}

async fn put(store: &dyn Documents, name: &str, text: &str) {
    store.put(key(name), value(text)).await.expect("a put");
}

async fn text(store: &dyn Documents, key: &Key) -> Option<String> {
    store.get(key).await.expect("a read").map(|record| record.value.as_str().to_owned())
}

async fn page(store: &dyn Documents, what: &Selection, scan: &Scan) -> Page {
    store.select(what, scan, &ReadOptions::default()).await.expect("a selection")
}

/// The keys of all that it selects.
async fn selected(store: &Arc<dyn Documents>, what: &Selection) -> Vec<String> {
    let mut scan = Scan::prefix("");
    let mut names = Vec::new();
    loop {
        let page = page(&**store, what, &scan).await;
        names.extend(page.records.iter().map(|record| record.key.as_str().to_owned()));
        match page.next {
            Some(next) => scan.after = Some(next),
            None => return names,
        }
    }
}
