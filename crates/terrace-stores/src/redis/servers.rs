//! Where Redis is, as a URL says it, and connections to there.
//!
//! `redis://` is one server. `rediss://` is one over TLS: `ca` names a file with the authorities that its
//! certificate may be of, `cert` and `key` the client's own certificate. Everything that uses Redis connects
//! by this module alone, so a URL means the same wherever it stands.

mod tls;
mod url;

use std::fmt;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::io::tcp::{TcpSettings, socket2::TcpKeepalive};
use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _,
    RedisConnectionInfo, RedisResult,
};
use terrace_core::{Result, Runtime};

pub(crate) use self::tls::Distrust;
use self::tls::Tls;
use self::url::Form;

/// After how long without traffic the system asks whether the other side is there.
const IDLE: Duration = Duration::from_secs(10);

/// What a URL names.
#[derive(Clone)]
pub(crate) struct Servers {
    address: ConnectionAddr,
    login: RedisConnectionInfo,
    tls: Option<Tls>,
    shown: String,
}

impl Servers {
    /// What this URL names. The files that it names are read.
    ///
    /// # Errors
    /// `InvalidInput` that says what is wrong with the URL, without repeating it: it holds a password.
    pub(crate) fn of(url: &str) -> Result<Self> {
        let Form { server, login, tls, shown } = url::parse(url)?;
        let tls = tls.map(Tls::open).transpose()?;
        Ok(Self { address: server, login, tls, shown })
    }

    /// Host and port, for people.
    pub(crate) fn shown(&self) -> &str {
        &self.shown
    }

    /// A connection that waits for answers for as long as its caller does, and lets so many requests wait
    /// for the driver before callers wait.
    pub(crate) async fn connect(
        &self,
        runtime: &Runtime,
        pipeline: usize,
    ) -> RedisResult<MultiplexedConnection> {
        // Timeouts are Terrace's own: one timer for a batch instead of one for each command.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(pipeline);
        match (&self.tls, &self.address) {
            (Some(tls), ConnectionAddr::Tcp(host, port)) => {
                let stream = tls.connect((host, *port), &settings()).await?;
                let made = MultiplexedConnection::new_with_config(&self.login, stream, config);
                let (connection, driver) = made.await?;
                // It ends with the last clone of the connection.
                runtime.spawn("redis driver", driver).detach();
                Ok(connection)
            }
            (_, address) => {
                let client = self.client(address)?;
                client.get_multiplexed_async_connection_with_config(&config).await
            }
        }
    }

    /// A connection for subscriptions.
    pub(crate) async fn listen(&self) -> RedisResult<PubSub> {
        match (&self.tls, &self.address) {
            (Some(tls), ConnectionAddr::Tcp(host, port)) => {
                let stream = tls.connect((host, *port), &settings()).await?;
                PubSub::new(&self.login, stream).await
            }
            (_, address) => self.client(address)?.get_async_pubsub().await,
        }
    }

    fn client(&self, address: &ConnectionAddr) -> RedisResult<Client> {
        let info: ConnectionInfo = address.clone().into_connection_info()?;
        Client::open(info.set_redis_settings(self.login.clone()).set_tcp_settings(settings()))
    }
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
