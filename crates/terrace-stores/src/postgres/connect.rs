//! Sessions with the server: how they begin, what they know, how they end.

use std::fmt;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::poll_fn;
use terrace_core::{
    Deadline, Durability, Error, ErrorKind, Histories, Result, Runtime, Standing, Task,
};
use tokio::sync::watch;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{AsyncMessage, Client, Config, Row};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::altering::failed;
use super::connection::{Connection, Promised, durability, is_committed_alone};
use super::history::{self, Look};
use super::migrate;
use super::options::Target;
use super::setup::{self, Settings};
use super::sqlstate::{Stage, explain};
use super::statements::Dialect;
use super::tls;

/// The oldest major version whose behaviour the statements rely on.
const OLDEST: i32 = 15;

/// Opens sessions.
pub(super) struct Connector {
    config: Config,
    settings: Settings,
    tls: MakeRustlsConnect,
    runtime: Runtime,
    hosts: String,
    /// The longest that one connection may take to be ready, over all hosts.
    patience: Duration,
    /// How long a session of the pool is used, ± 10 %.
    max_lifetime: Duration,
    /// What kind of database it is.
    dialect: Dialect,
    /// The schema of the tables.
    schema: String,
    /// What was heard of the database.
    histories: Arc<Histories>,
    durability: Arc<Promised>,
    /// Whether a server that takes no writes will do.
    read_only: bool,
}

impl Connector {
    pub(super) fn new(
        target: Target,
        runtime: Runtime,
        max_lifetime: Duration,
        dialect: Dialect,
        (schema, read_only): (String, bool),
    ) -> Result<Self> {
        let tls = MakeRustlsConnect::new(tls::client(&target)?);
        let hosts = u32::try_from(target.config.get_hosts().len()).unwrap_or(u32::MAX);
        let patience = target.connect_timeout.saturating_mul(hosts);
        let Target { config, settings, hosts, .. } = target;
        let histories = Arc::new(Histories::new(Standing::of("")));
        let durability = Arc::default();
        Ok(Self {
            config,
            settings,
            tls,
            runtime,
            hosts,
            patience,
            max_lifetime,
            dialect,
            schema,
            histories,
            durability,
            read_only,
        })
    }

    /// The schema of the tables.
    pub(super) fn schema(&self) -> &str {
        &self.schema
    }

    /// What was heard of the database.
    pub(super) fn histories(&self) -> &Arc<Histories> {
        &self.histories
    }

    /// Notes what the server said when it was asked at this moment, by a session that is asked again and
    /// again: settings that are changed show in that.
    pub(super) fn heard(&self, look: &Look, standing: Standing, asked: Instant) {
        let (fsync, commit, standbys) = &look.settings;
        self.durability.is(durability(*fsync, commit, *standbys));
        self.histories.heard(standing, asked);
    }

    /// `host:port`, separated by commas.
    pub(super) fn hosts(&self) -> &str {
        &self.hosts
    }

    /// How safe a commit is, as it was looked at last.
    pub(super) fn durability(&self) -> Durability {
        self.durability.get()
    }

    /// The longest that opening a session may take.
    pub(super) fn patience(&self) -> Duration {
        self.patience * 2
    }

    /// A session without prepared statements, that knows nothing of the history, with a server that can be
    /// worked with.
    pub(super) async fn open(&self) -> Result<Connection> {
        let mut connection = self.dial().await?;
        let deadline = Deadline::at(self.runtime.now() + self.patience);
        let asked = self.runtime.within(deadline, self.examine(&connection)).await;
        self.accept(&mut connection, asked.ok_or_else(|| self.too_slow())?).await?;
        Ok(connection)
    }

    /// As [`Connector::open`], for the first session: a second one, beside it, shows whether each has a
    /// session of the server to itself.
    pub(super) async fn open_first(&self) -> Result<Connection> {
        let first = self.open().await?;
        let found = match self.open().await {
            Ok(_second) => setup::find(first.driver(), &first.mark).await,
            Err(error) => Err(error),
        };
        match found {
            Ok(()) => Ok(first),
            Err(error) => {
                setup::undo(first.driver()).await;
                Err(error.with("hosts", &*self.hosts))
            }
        }
    }

    async fn dial(&self) -> Result<Connection> {
        let (client, mut session) = self.connect().await?;
        let alone = Arc::new(AtomicBool::new(false));
        let noted = Arc::clone(&alone);
        let task = self.runtime.spawn("postgres session", async move {
            // Notices come before the answer that they are about.
            let mut messages = pin!(poll_fn(|context| session.poll_message(context)));
            while let Some(message) = messages.next().await {
                match message {
                    Ok(AsyncMessage::Notice(notice)) if is_committed_alone(&notice) => {
                        noted.store(true, Ordering::Release);
                    }
                    Ok(_) => {}
                    Err(error) => {
                        tracing::debug!(%error, "a session with PostgreSQL ended");
                        return;
                    }
                }
            }
        });
        let durability = (Arc::clone(&self.durability), alone);
        let mut connection = Connection::new(client, task, self.dialect, durability);
        connection.mark = self.mark();
        Ok(connection)
    }

    async fn connect(&self) -> Result<(Client, Session)> {
        let deadline = Deadline::at(self.runtime.now() + self.patience);
        // Boxed: it is large, rare, and part of every request's future.
        let connect = Box::pin(self.config.connect(self.tls.clone()));
        let opened = self.runtime.within(deadline, connect).await;
        opened.ok_or_else(|| self.too_slow())?.map_err(|error| {
            explain(error, Stage::Connecting).with("hosts", &*self.hosts).during("connect")
        })
    }

    /// A session that tells of notifications, and when it has ended, by raising a number.
    pub(super) async fn listen(&self, heard: watch::Sender<u64>) -> Result<(Client, Task)> {
        let (client, mut session) = self.connect().await?;
        let task = self.runtime.spawn("postgres listener", async move {
            let messages = poll_fn(|context| session.poll_message(context));
            let mut messages = pin!(messages);
            while let Some(Ok(message)) = messages.next().await {
                if matches!(message, AsyncMessage::Notification(_)) {
                    heard.send_modify(|number| *number += 1);
                }
            }
            heard.send_modify(|number| *number += 1);
        });
        self.settings.check(self.settings.apply(&client, &self.mark()).await)?;
        Ok((client, task))
    }

    fn mark(&self) -> String {
        format!("{:016x}", self.runtime.random())
    }

    /// Sets the session up, and asks what the server is.
    async fn examine(&self, connection: &Connection) -> Examined {
        let client = connection.driver();
        let applied = self.settings.apply(client, &connection.mark);
        futures_util::future::join(applied, server(client)).await
    }

    /// Whether the session can be worked with.
    async fn accept(&self, connection: &mut Connection, examined: Examined) -> Result<()> {
        let (applied, server) = examined;
        if let Err(error) = self.settings.check(applied) {
            setup::undo(connection.driver()).await;
            return Err(error.with("hosts", &*self.hosts));
        }
        let rows = server.map_err(|error| explain(error, Stage::Connecting).during("connect"))?;
        let row = rows.first().ok_or_else(|| Error::new(ErrorKind::Internal, "no settings"))?;
        let version = row.get::<_, i32>(0) / 10_000;
        if version < OLDEST {
            let old = Error::invalid("the PostgreSQL server is too old; use version 15 or later");
            return Err(old.with("version", version.to_string()).with("hosts", &*self.hosts));
        }
        let encoding: &str = row.get(8);
        if encoding != "UTF8" {
            return Err(encoded(encoding).with("hosts", &*self.hosts));
        }
        if row.get::<_, &str>(9) == "replica" {
            let message = "the database or its user sets session_replication_role = replica, so no \
                           trigger runs and changes are not logged; take it back (ALTER DATABASE or \
                           ALTER ROLE ... RESET session_replication_role)";
            return Err(Error::new(ErrorKind::Unavailable, message).with("hosts", &*self.hosts));
        }
        connection.is_replica = row.get(1);
        if connection.is_replica && !self.read_only {
            let message = "the PostgreSQL server is read-only; name the primary in the URL, or all \
                           hosts with target_session_attrs=read-write";
            return Err(Error::new(ErrorKind::Unavailable, message).with("hosts", &*self.hosts));
        }
        connection.takes_writes = !row.get::<_, bool>(7);
        connection.life = row.get::<_, i64>(2).unsigned_abs();
        connection.backend = row.get(3);
        let (fsync, commit, standbys) = (row.get(4), row.get(5), row.get(6));
        // Of the three this one alone may differ from session to session.
        connection.waits_for = durability(true, commit, true);
        let promised = durability(fsync, commit, standbys);
        match self.dialect {
            // Nobody looks at its server again.
            Dialect::ReadModel => self.durability.is(promised),
            _ => self.durability.is_at_most(promised),
        }
        Ok(())
    }

    /// Finds the history that the session is of; tables that are missing are made.
    pub(super) async fn recognise(&self, connection: &mut Connection) -> Result<()> {
        let (asked, known) = (self.runtime.now(), self.histories.standing());
        let found = history::look(connection.driver()).await;
        self.settle(connection, found, (asked, &known)).await
    }

    /// What was known is from before the session was opened: one that was on its way to a server while
    /// another took that one's place leads to no way back.
    async fn settle(
        &self,
        connection: &mut Connection,
        found: Answered<Look>,
        (asked, known): (Instant, &Standing),
    ) -> Result<()> {
        let is_replica = connection.is_replica;
        let client = connection.client();
        let settled = match found {
            Err(error) if history::is_missing(&error) && is_replica => Err(history::not_received()),
            Err(error) if history::is_missing(&error) && !self.read_only => {
                migrate::migrate(client, &self.schema).await?;
                history::settle(client, &self.schema, known).await
            }
            Err(error) => Err(failed(error)),
            Ok(found) => history::settle_found(client, &self.schema, known, found).await,
        };
        let (standing, look) = settled.map_err(|error| error.with("hosts", &*self.hosts))?;
        connection.history = Arc::clone(&standing.history);
        connection.generation = standing.generation;
        connection.is_replica = look.is_replica;
        if look.is_replica {
            self.histories.begins_with(&connection.history);
        } else {
            self.histories.heard(standing, asked);
            if !self.histories.has(&connection.history) {
                let message = "another server has taken this one's place just now; try again";
                return Err(Error::new(ErrorKind::Unavailable, message));
            }
        }
        Ok(())
    }

    /// Asks the server in the background to end what this session does.
    pub(super) fn cancel(&self, connection: &Connection) {
        // A future may be dropped when its runtime is gone; then the closed socket must do.
        if connection.is_closed() || tokio::runtime::Handle::try_current().is_err() {
            return;
        }
        let (token, tls) = (connection.driver().cancel_token(), self.tls.clone());
        let (runtime, deadline) = (self.runtime.clone(), self.runtime.now() + CANCEL_WITHIN);
        let asked = async move {
            let _best_effort =
                runtime.within(Deadline::at(deadline), token.cancel_query(tls)).await;
        };
        self.runtime.spawn("postgres cancel", asked).detach();
    }

    fn too_slow(&self) -> Error {
        let message = "the database did not accept a connection in time; check that the host is \
                       right and no firewall drops the connection";
        Error::new(ErrorKind::Unavailable, message).with("hosts", &*self.hosts).during("connect")
    }

    /// A session for one request.
    pub(super) async fn open_for_request(&self) -> Result<Connection> {
        let opened = self.ready().await;
        opened.map_err(|error| match error.kind() {
            // What is wrong with the server is no mistake of the request.
            ErrorKind::InvalidInput => error.into_kind(ErrorKind::Unavailable),
            _ => error,
        })
    }

    /// All that must be known is asked at once.
    async fn ready(&self) -> Result<Connection> {
        let known = self.histories.standing();
        let mut connection = self.dial().await?;
        let deadline = Deadline::at(self.runtime.now() + self.patience);
        let ready = async {
            if self.dialect == Dialect::ReadModel {
                let examined = self.examine(&connection).await;
                return self.accept(&mut connection, examined).await;
            }
            let asked = self.runtime.now();
            let look = history::look(connection.driver());
            let examine = self.examine(&connection);
            let (examined, found) = futures_util::future::join(examine, look).await;
            self.accept(&mut connection, examined).await?;
            self.settle(&mut connection, found, (asked, &known)).await
        };
        // Boxed: it is large, and part of every request's future.
        let ready = self.runtime.within(deadline, Box::pin(ready)).await;
        ready.ok_or_else(|| self.too_slow())??;
        Ok(connection)
    }

    /// A session with everything prepared, that ends after its share of the lifetime.
    pub(super) async fn open_for_pool(&self) -> Result<Connection> {
        let mut connection = self.open_for_request().await?;
        let deadline = Deadline::at(self.runtime.now() + self.patience);
        let prepared = self.runtime.within(deadline, connection.prepare()).await;
        let prepared = prepared.ok_or_else(|| self.too_slow())?;
        prepared.map_err(|error| explain(error, Stage::Harmless).during("connect"))?;
        let lifetime = self.runtime.jitter(self.max_lifetime, 0.1);
        connection.expires_at = Some(self.runtime.now() + lifetime);
        Ok(connection)
    }
}

impl fmt::Display for Connector {
    /// Where the tables are: hosts, database and schema.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.config.get_dbname().unwrap_or_default();
        write!(f, "postgres {}/{database} {}", self.hosts, self.schema)
    }
}

type Answered<T> = Result<T, tokio_postgres::Error>;

/// The driver's side of a session.
type Session = tokio_postgres::Connection<
    tokio_postgres::Socket,
    <MakeRustlsConnect as MakeTlsConnect<tokio_postgres::Socket>>::Stream,
>;

/// How setting a session up ended, and what the server is.
type Examined = (Answered<Vec<Row>>, Answered<Vec<Row>>);

/// What [`Connector::accept`] looks at.
async fn server(client: &Client) -> Answered<Vec<Row>> {
    const SERVER: &str = concat!(
        "SELECT current_setting('server_version_num')::int, \
           pg_is_in_recovery(), \
           (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::bigint, \
           pg_backend_pid(), ",
        history::safety!(),
        ", current_setting('transaction_read_only') = 'on', current_setting('server_encoding'), \
         current_setting('session_replication_role')"
    );
    client.query_typed(SERVER, &[]).await
}

/// Keys and values are Unicode.
fn encoded(encoding: &str) -> Error {
    Error::invalid(format!(
        "the database's encoding is {encoding}, which does not have every key and value; make another \
         with createdb --encoding=UTF8 --template=template0, and name it in the URL"
    ))
}

const CANCEL_WITHIN: Duration = Duration::from_secs(1);
