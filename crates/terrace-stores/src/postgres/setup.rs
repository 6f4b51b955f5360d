//! How a session is set up: by its first statement, whose answer says that all of it is in force.
//!
//! Settings could travel in the first message of a connection. There a pooler refuses them, or drops
//! them in silence, and the tables of another schema would be read.
//!
//! **A pooler that shares sessions** (PgBouncer with `pool_mode = transaction`) gives each transaction
//! the session of somebody else: settings, prepared statements, session locks and `LISTEN` are then
//! another's. So each session leaves a mark, and who finds one is refused. A pooler that gives each
//! client a session of its own discards the mark between two clients, with all else.

use terrace_core::{Error, ErrorKind, Result};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::sqlstate::{Stage, explain};

/// What is set for each session.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    pub(super) names: Vec<String>,
    pub(super) values: Vec<String>,
    /// How many of them the URL asks for; they are the first.
    pub(super) asked: usize,
}

impl Settings {
    pub(super) fn push(&mut self, name: impl Into<String>, value: impl Into<String>) {
        self.names.push(name.into());
        self.values.push(value.into());
    }

    /// Sets all, leaves the mark, and answers the mark that was there.
    pub(super) async fn apply(
        &self,
        client: &Client,
        mark: &str,
    ) -> Result<Vec<Row>, tokio_postgres::Error> {
        const APPLY: &str = "SELECT coalesce(current_setting('terrace.session', true), ''), \
               set_config('terrace.session', $1, false), \
               ARRAY(SELECT set_config(name, value, false) \
                 FROM unnest($2::text[], $3::text[]) AS setting(name, value))";
        let parameters: [(&(dyn ToSql + Sync), Type); 3] = [
            (&mark, Type::TEXT),
            (&self.names, Type::TEXT_ARRAY),
            (&self.values, Type::TEXT_ARRAY),
        ];
        client.query_typed(APPLY, &parameters).await
    }

    /// Whether the session is of this client alone, by what [`Settings::apply`] answered.
    pub(super) fn check(&self, applied: Result<Vec<Row>, tokio_postgres::Error>) -> Result<()> {
        let rows = applied.map_err(|error| self.explain(error).during("connect"))?;
        match rows.first().map(|row| row.get::<_, &str>(0)) {
            Some("") => Ok(()),
            _ => Err(shared()),
        }
    }

    /// The server's words name a setting of the URL, whose value may stand there, too.
    fn explain(&self, error: tokio_postgres::Error) -> Error {
        let refused = error.as_db_error().filter(|_| self.asked > 0);
        let class = |refused: &tokio_postgres::error::DbError| {
            ["22", "42", "55"].contains(&&refused.code().code()[..2])
        };
        match refused.filter(|refused| class(refused)) {
            Some(refused) => Error::invalid(format!(
                "the `options` of the PostgreSQL URL cannot be set: {}; correct or remove them",
                refused.message()
            )),
            None => explain(error, Stage::Connecting),
        }
    }
}

/// Whether a session still has its mark, after another one was set up.
pub(super) async fn find(client: &Client, mark: &str) -> Result<()> {
    const FIND: &str = "SELECT coalesce(current_setting('terrace.session', true), '')";
    let found = client.query_typed(FIND, &[]).await;
    let rows = found.map_err(|error| explain(error, Stage::Connecting).during("connect"))?;
    match rows.first().is_some_and(|row| row.get::<_, &str>(0) == mark) {
        true => Ok(()),
        false => Err(shared()),
    }
}

/// Takes back what a session was set up with that turned out to be somebody else's, too.
pub(super) async fn undo(client: &Client) {
    let _best_effort = client.batch_execute("RESET ALL").await;
}

fn shared() -> Error {
    Error::new(
        ErrorKind::InvalidInput,
        "a pooler before the database gives its sessions to several clients at once; Terrace pools \
         connections itself and needs sessions of its own: set PgBouncer's pool_mode = session for \
         this database, or name the server itself in the URL",
    )
}
