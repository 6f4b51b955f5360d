//! One data tier that you climb level by level: the levels, the HTTP server and the command line.
//!
//! Composition happens only here: [`levels`] builds a stack of layers over stores, [`http`] serves
//! any stack, [`cli`] is the program. The crates below know nothing of each other.
//!
//! The crates are usable without the program; a stack of one's own is a few lines:
//!
//! ```
//! use std::sync::Arc;
//! use terrace_core::{Key, Runtime, StoreExt, Value};
//! use terrace_layers::{Coalesce, CoalesceOptions};
//! use terrace_stores::{SqliteOptions, SqliteStore};
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let directory = tempfile::tempdir()?;
//! # let path = directory.path().join("app.sqlite");
//! let runtime = Runtime::system();
//! let sqlite = SqliteStore::open(SqliteOptions::new(path), runtime.clone())?;
//! let store = Coalesce::new(Arc::new(sqlite), CoalesceOptions::default(), runtime);
//! store.put(Key::new("user:1")?, Value::new("Ada")?).await?;
//! # Ok(()) }
//! ```

pub mod access;
pub mod backup;
pub mod cli;
pub mod config;
mod file_state;
pub mod http;
pub mod levels;
pub mod live;
mod outbound;
mod traces;

/// The page for those who use the crates; here so that what it shows compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/rust.md")]
struct Guide;
