//! What a shard says of itself, and how that changes.

use terrace_core::shard::{Reserved, moved};
use terrace_core::{Error, ErrorKind, Result, ShardState, Version};
use tokio_postgres::Client;

use super::super::sqlstate::{Stage, explain};
use super::{Inner, LOCK, MOVING, number_of_table, refused, signed};

impl Inner {
    pub(super) async fn state(&self) -> Result<Option<ShardState>> {
        let (mut session, mut place) = self.take_session().await?;
        let found = session.client().query_typed("SELECT state FROM terrace_shard", &[]).await;
        let found = found.map_err(refused)?;
        *place = Some(session);
        found.first().map(|row| parsed(row.get(0))).transpose()
    }

    pub(super) async fn found(&self, state: ShardState) -> Result<ShardState> {
        const FOUND: &str =
            "INSERT INTO terrace_shard (epoch, state) VALUES ($1, $2) ON CONFLICT (one) DO NOTHING";
        let (mut session, mut place) = self.take_session().await?;
        let (epoch, text) = (signed(state.epoch), text(&state)?);
        let client = session.client();
        client.execute(FOUND, &[&epoch, &text]).await.map_err(refused)?;
        let found =
            client.query_one("SELECT state FROM terrace_shard", &[]).await.map_err(refused)?;
        *place = Some(session);
        parsed(found.get(0))
    }

    /// The lock first, then a look in a later statement: its snapshot has all writes that were let in.
    pub(super) async fn change(
        &self,
        from: u64,
        to: ShardState,
        floor: Version,
    ) -> Result<Version> {
        let (mut session, mut place) = self.take_session().await?;
        let changed = change(session.client(), from, &to, floor, &self.schema).await;
        if changed.is_ok() || !session.is_closed() {
            *place = Some(session);
        }
        changed
    }

    /// An advisory lock of a session that lives as long as what is answered.
    pub(super) async fn reserve(&self) -> Result<Reserved> {
        let mut session = self.open().await?;
        let table = number_of_table(&self.schema);
        let reserve = format!("SELECT pg_try_advisory_lock({MOVING}, {table}::int)");
        let reserved = session.client().query_one(&reserve, &[]).await.map_err(refused)?;
        if !reserved.get::<_, bool>(0) {
            let message = "another terrace reshard or terrace backup is at work; wait for its end";
            return Err(Error::new(ErrorKind::Unavailable, message));
        }
        Ok(Box::new(session))
    }
}

async fn change(
    client: &mut Client,
    from: u64,
    to: &ShardState,
    floor: Version,
    schema: &str,
) -> Result<Version> {
    const LATEST: &str =
        "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM records_version";
    let transaction = client.transaction().await.map_err(refused)?;
    // A fence that a crash forgets would leave two owners.
    let durable = "SELECT set_config('synchronous_commit', 'on', true) \
         WHERE current_setting('synchronous_commit') = 'off'";
    transaction.batch_execute(durable).await.map_err(refused)?;
    let table = number_of_table(schema);
    let alone =
        format!("SET LOCAL lock_timeout = 0; SELECT pg_advisory_xact_lock({LOCK}, {table}::int)");
    transaction.batch_execute(&alone).await.map_err(refused)?;
    let update = "UPDATE terrace_shard SET epoch = $2, state = $3 WHERE epoch = $1";
    let (before, after, text) = (signed(from), signed(to.epoch), text(to)?);
    let known =
        transaction.query_opt("SELECT state FROM terrace_shard", &[]).await.map_err(refused)?;
    let known = known.map(|row| parsed(row.get(0))).transpose()?;
    let changed = transaction.execute(update, &[&before, &after, &text]).await.map_err(refused)?;
    if changed != 1 {
        return Err(moved());
    }
    // What is cached of slots that go is told of no later write to them.
    if known.is_some_and(|known| !known.owned.without(&to.owned).is_empty()) {
        const RAISE: &str = "UPDATE terrace_history SET generation = generation + 1 \
             WHERE identity IS NOT NULL";
        transaction.execute(RAISE, &[]).await.map_err(refused)?;
    }
    // Nobody draws: who writes has entered, and who has entered holds the lock.
    let latest: i64 = transaction.query_one(LATEST, &[]).await.map_err(refused)?.get(0);
    let floor = signed(floor.get());
    if latest < floor {
        let raise = "SELECT setval('records_version', $1)";
        transaction.execute(raise, &[&floor]).await.map_err(refused)?;
    }
    transaction.commit().await.map_err(|error| explain(error, Stage::Committing))?;
    Ok(super::super::read::version(latest.max(floor)))
}

fn parsed(text: &str) -> Result<ShardState> {
    serde_json::from_str(text).map_err(|error| {
        let message =
            "what the table `terrace_shard` holds cannot be read; restore it from a backup";
        Error::new(ErrorKind::Corrupt, message).caused_by(error)
    })
}

fn text(state: &ShardState) -> Result<String> {
    serde_json::to_string(state).map_err(|error| {
        Error::new(ErrorKind::Internal, "the state cannot be written").caused_by(error)
    })
}
