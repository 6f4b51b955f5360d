//! The properties that every [`Store`](crate::Store) keeps.
//!
//! Each property is one async function over a fresh store. The macro
//! [`store_contract!`](crate::store_contract) makes a test of each:
//!
//! ```
//! use std::sync::Arc;
//! use terrace_core::MemoryStore;
//! use terrace_core::testkit::StoreFixture;
//!
//! async fn memory() -> StoreFixture {
//!     StoreFixture::new(Arc::new(MemoryStore::default()))
//! }
//!
//! terrace_core::store_contract!(memory);
//! # fn main() {}
//! ```

mod batches;
mod concurrency;
mod places;
mod preconditions;
mod records;
mod requests;
mod scans;

pub use batches::*;
pub use concurrency::*;
pub use places::*;
pub use preconditions::*;
pub use records::*;
pub use requests::*;
pub use scans::*;

/// Makes one test of each property of the [`Store`](crate::Store) contract, in a module `contract`.
///
/// Takes the path of an async function without arguments that makes a fresh
/// [`StoreFixture`](crate::testkit::StoreFixture).
#[macro_export]
macro_rules! store_contract {
    ($factory:path) => {
        mod contract {
            use super::*;
            $crate::each_property! { $factory, store_contract:
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
                a_place_is_applied_once_and_never_over_a_later_one,
                a_placed_delete_keeps_older_puts_out,
                a_place_has_the_time_of_its_acceptance,
                places_of_one_batch_are_gone_through_in_order,
                a_scan_answers_byte_order_and_skips_the_deleted,
                a_scan_pages_through_everything_once,
                a_scan_takes_a_prefix_literally,
                a_page_ends_where_its_values_are_many_bytes,
                concurrent_writers_are_ordered_by_version,
                concurrent_increments_are_not_lost,
                a_dropped_future_leaves_all_or_nothing,
                an_idempotent_request_is_applied_once,
                a_passed_deadline_changes_nothing,
                a_write_is_seen_by_a_strong_read_and_by_its_token,
                a_closed_store_says_so,
                an_inspection_is_healthy_and_named,
            }
        }
    };
}

/// Makes a test of each named property; used by the contract macros.
#[doc(hidden)]
#[macro_export]
macro_rules! each_property {
    ($factory:path, $suite:ident: $($property:ident,)*) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $property() {
                let fixture = $factory().await;
                $crate::testkit::$suite::$property(
                    ::std::sync::Arc::clone(&fixture.subject)
                ).await;
            }
        )*
    };
}
