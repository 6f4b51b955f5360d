//! Where Redis is, as a URL says it, and connections to there.
//!
//! `redis://` is one server. `redis+sentinel://` is the primary that sentinels name; they are asked at each
//! connection, and a server that says it is a replica is not believed. `redis+cluster://` is the node that
//! has the slot of a namespace, as nodes say that are asked in the same way: a namespace has one slot, so one
//! connection does, and one that is told that the slot has moved (`MOVED`) is made anew. With `rediss` in the place of `redis`
//! all of it goes over TLS: `ca` names a file with the authorities that a server's certificate may be of,
//! `cert` and `key` the client's own certificate. Everything that uses Redis connects by this module alone,
//! so a URL means the same wherever it stands.

mod guides;
mod tls;
mod url;

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, IntoConnectionInfo as _, RedisConnectionInfo,
    RedisError, RedisResult,
};
use terrace_core::{Result, Runtime};

pub(crate) use self::guides::Lost;
use self::guides::{Guides, Question};
pub(crate) use self::tls::Distrust;
use self::tls::Tls;
use self::url::{Form, ServerPlace};

/// After how long without traffic the system asks whether the other side is there.
const IDLE: Duration = Duration::from_secs(10);

/// What a URL names.
pub(crate) struct Servers {
    known: Known,
    way: ConnectionSetup,
    shown: String,
}

/// Who serves.
enum Known {
    One(ConnectionAddr),
    /// Whom these name.
    By(Guides),
}

/// How to connect, whoever it is.
#[derive(Clone)]
struct ConnectionSetup {
    login: RedisConnectionInfo,
    tls: Option<Tls>,
}

impl Servers {
    /// What this URL names, for the use of keys that have one slot, that of this one. The files that it names
    /// are read.
    ///
    /// # Errors
    /// `InvalidInput` that says what is wrong with the URL, without repeating it: it holds a password.
    pub(crate) fn of(url: &str, key: &str) -> Result<Self> {
        let Form { place, login, tls, shown } = url::parse(url, key)?;
        let way = ConnectionSetup { login, tls: tls.map(Tls::open).transpose()? };
        let known = match place {
            ServerPlace::One(address) => Known::One(address),
            ServerPlace::By { question, guides, login } => Known::By(Guides::new(
                question,
                guides,
                ConnectionSetup { login, tls: way.tls.clone() },
            )),
        };
        Ok(Self { known, way, shown })
    }

    /// Hosts and ports, for people.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether all keys must have one slot.
    pub(crate) fn are_a_cluster(&self) -> bool {
        match &self.known {
            Known::One(_) => false,
            Known::By(guides) => matches!(guides.question, Question::Owner { .. }),
        }
    }

    /// Whether another server may take the place of the one that serves, without what that one took last:
    /// replication is asynchronous.
    pub(crate) fn may_fail_over(&self) -> bool {
        matches!(self.known, Known::By(_))
    }

    /// A connection that waits for answers for as long as its caller does, and lets so many requests wait
    /// for the driver before callers wait; and to whom it is.
    pub(crate) async fn connect(
        &self,
        runtime: &Runtime,
        pipeline: usize,
    ) -> RedisResult<(MultiplexedConnection, ConnectionAddr)> {
        let address = self.find(runtime).await?;
        let mut connection = self.way.connect(&address, runtime, pipeline).await?;
        if let Known::By(guides) = &self.known {
            guides.question.check(&mut connection).await?;
        }
        Ok((connection, address))
    }

    /// A connection for subscriptions.
    pub(crate) async fn listen(&self, runtime: &Runtime) -> RedisResult<PubSub> {
        let address = self.find(runtime).await?;
        self.way.listen(&address).await
    }

    /// Whether another server has the place of this one by now. Where nobody can say, none has.
    pub(crate) async fn have_left(&self, runtime: &Runtime, address: &ConnectionAddr) -> bool {
        match &self.known {
            Known::One(_) => false,
            Known::By(guides) => guides.find(runtime).await.is_ok_and(|now| now != *address),
        }
    }

    async fn find(&self, runtime: &Runtime) -> RedisResult<ConnectionAddr> {
        match &self.known {
            Known::One(address) => Ok(address.clone()),
            Known::By(guides) => guides.find(runtime).await,
        }
    }
}

impl ConnectionSetup {
    async fn connect(
        &self,
        address: &ConnectionAddr,
        runtime: &Runtime,
        pipeline: usize,
    ) -> RedisResult<MultiplexedConnection> {
        // Timeouts are Terrace's own: one timer for a batch instead of one for each command.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(pipeline);
        match (&self.tls, address) {
            (Some(tls), ConnectionAddr::Tcp(host, port)) => {
                let stream = tls.connect((host, *port), &settings()).await?;
                let made = MultiplexedConnection::new_with_config(&self.login, stream, config);
                let (connection, driver) = made.await?;
                // It ends with the last clone of the connection.
                runtime.spawn("redis driver", driver).detach();
                Ok(connection)
            }
            _ => {
                let client = self.client(address)?;
                client.get_multiplexed_async_connection_with_config(&config).await
            }
        }
    }

    async fn listen(&self, address: &ConnectionAddr) -> RedisResult<PubSub> {
        match (&self.tls, address) {
            (Some(tls), ConnectionAddr::Tcp(host, port)) => {
                let stream = tls.connect((host, *port), &settings()).await?;
                PubSub::new(&self.login, stream).await
            }
            _ => self.client(address)?.get_async_pubsub().await,
        }
    }

    fn client(&self, address: &ConnectionAddr) -> RedisResult<Client> {
        let info = address.clone().into_connection_info()?;
        Client::open(info.set_redis_settings(self.login.clone()).set_tcp_settings(settings()))
    }
}

/// What an error of the driver's holds that was made here.
pub(crate) fn made_here<E: StdError + Copy + 'static>(error: &RedisError) -> Option<E> {
    let source = error.source()?;
    let failed = match source.downcast_ref::<Arc<dyn StdError + Send + Sync>>() {
        Some(shared) => shared.downcast_ref::<io::Error>(),
        None => source.downcast_ref::<io::Error>(),
    };
    failed?.get_ref()?.downcast_ref::<E>().copied()
}

fn settings() -> TcpSettings {
    let keepalive = TcpKeepalive::new().with_time(IDLE).with_interval(IDLE / 2);
    TcpSettings::default().set_nodelay(true).set_keepalive(keepalive)
}

impl fmt::Debug for Servers {
    /// Without what stands before the `@`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Servers").field("shown", &self.shown).finish_non_exhaustive()
    }
}
