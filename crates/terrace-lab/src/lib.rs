//! Private PostgreSQL (with streaming standbys), Redis, NATS and document servers on this machine, for
//! `terrace up --stores local` and for tests.
//!
//! A server lives in one directory: its data, its password if it has one (a file of mode 0600), the port
//! that it used last, its log. It listens on 127.0.0.1 alone. It ends with the process that started it,
//! also when that process is killed; what an earlier run left behind is stopped at the next start.
//!
//! ```no_run
//! # async fn example() -> Result<(), terrace_lab::LabError> {
//! use terrace_lab::{PostgresOptions, PostgresServer};
//!
//! let server = PostgresServer::start(PostgresOptions::new(".terrace/postgres")).await?;
//! let url = server.create_database("terrace_l5").await?;
//! # drop(url);
//! server.stop().await
//! # }
//! ```
//!
//! A [`FaultProxy`] stands between a client and a server, and cuts, holds, delays or drops what they
//! send each other. A [`Distance`] puts round trips of other networks between them.
//!
//! As root a server runs under an unprivileged account, as PostgreSQL demands: the owner of the
//! directory where that is not root, else `postgres`, else `nobody`.

mod account;
mod alarm;
mod distance;
mod error;
mod front;
mod home;
mod mongo;
mod nats;
mod pgbouncer;
mod postgres;
mod private_server;
mod processes;
mod programs;
mod proxy;
mod redis;
mod secret;
mod supervisor;
pub mod testing;
mod wait;

pub use alarm::Alarm;
pub use distance::Distance;
pub use error::{LabError, LabErrorKind};
pub use front::FrontServer;
pub use mongo::{MongoOptions, MongoServer};
pub use nats::{NatsOptions, NatsServer};
pub use pgbouncer::PgBouncer;
pub use postgres::{PostgresOptions, PostgresServer};
pub use private_server::PrivateServer;
pub use programs::{Program, ProgramState, find_program, programs};
pub use proxy::{Direction, Evidence, FaultProxy};
pub use redis::{Persistence, RedisOptions, RedisServer};

/// Runs blocking work on the runtime's threads for it; a panic there goes on here.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, LabError> + Send + 'static,
) -> Result<T, LabError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(LabError::new(
                LabErrorKind::Io,
                "the runtime shut down before the server's work began",
                "end servers before their runtime",
            )),
        },
    }
}
