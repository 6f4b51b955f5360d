//! A server on data that a backup brings back.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::engine::Postgres;
use super::{PostgresOptions, PostgresServer};
use crate::blocking;
use crate::error::{LabError, Result};
use crate::home::Home;
use crate::private_server::{PrivateServer, Start};

/// Whoever the copied server knows may log in with the password that it had there.
const LOGINS: &str = "host all all 127.0.0.1/32 md5\n";

impl PostgresServer {
    /// Lets `fill` bring a copy of a server's files into `data` below the directory that it is given, then
    /// starts a server there and waits until it has recovered and accepts connections.
    ///
    /// Of the settings in the copy none counts, and nor does who might log in: such a copy must not write into
    /// the archive of its original, nor take its port. `options.settings` say how it recovers. Roles and
    /// passwords are the copy's; [`url`](Self::url) is of no use with it.
    ///
    /// # Errors
    /// What `fill` says; [`StartFailed`](crate::LabErrorKind::StartFailed) when it does not recover.
    pub async fn restore(
        options: PostgresOptions,
        fill: impl FnOnce(&Path) -> io::Result<()> + Send + 'static,
    ) -> Result<Self, LabError> {
        blocking(move || {
            let home = Home::open(&options.directory)?;
            let lock = home.lock()?;
            for part in ["data", "wal"].map(|part| home.path().join(part)) {
                // What a drill that was killed has left.
                if options.temporary && part.exists() {
                    fs::remove_dir_all(&part).map_err(LabError::file("remove", &part))?;
                }
            }
            if let Err(error) = fill(home.path()) {
                if options.temporary {
                    let _nothing_is_of_use = fs::remove_dir_all(home.path());
                }
                return Err(LabError::file("restore into", home.path())(error));
            }
            home.write("data/postgresql.conf", "include 'terrace.conf'\n")?;
            home.write("data/postgresql.auto.conf", "")?;
            home.write("data/pg_hba.conf", LOGINS)?;
            home.write("data/pg_ident.conf", "")?;
            home.own_all(home.path())?;
            let engine = Arc::new(Postgres::new(&home, &options)?);
            let start = Start {
                port: options.port,
                within: options.start_within,
                temporary: options.temporary,
            };
            let server = PrivateServer::start(Arc::clone(&engine) as _, home, lock, &start)?;
            Ok(Self { server, engine })
        })
        .await
    }
}
