//! Commands to real engines, as a person would give them.

use terrace_lab::RedisServer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

/// Runs a statement on the database of a URL; the answer as rows of columns, separated by `|`.
pub(crate) async fn sql(url: &str, statement: &str) -> String {
    let said = postgres_program("psql", &["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1"])
        .args(["-c", statement, url])
        .output()
        .await
        .expect("psql runs");
    assert!(said.status.success(), "{statement}: {}", String::from_utf8_lossy(&said.stderr));
    String::from_utf8(said.stdout).expect("text").trim().to_owned()
}

/// A program of PostgreSQL that belongs to the server.
pub(crate) fn postgres_program(name: &str, arguments: &[&str]) -> Command {
    let server = terrace_lab::find_program("postgres").expect("PostgreSQL");
    let mut command = Command::new(server.with_file_name(name));
    command.args(arguments).kill_on_drop(true);
    command
}

/// What Redis answers to commands, one a line.
pub(super) async fn redis(server: &RedisServer, commands: &str) -> String {
    let url = server.url();
    let password = url.split_once("://:").and_then(|(_, rest)| rest.split_once('@'));
    let (password, _) = password.expect("a URL with a password");
    let address = ("127.0.0.1", server.port());
    let mut socket = tokio::net::TcpStream::connect(address).await.expect("a connection");
    let commands = format!("AUTH {password}\r\n{commands}\r\nQUIT\r\n");
    socket.write_all(commands.as_bytes()).await.expect("a write");
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.expect("an answer");
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(!answer.contains("-ERR"), "{answer}");
    answer
}

/// Sends a signal to a process.
pub(super) fn signal(pid: &str, name: &str) {
    let status = std::process::Command::new("kill").args([name, pid]).status();
    assert!(status.expect("kill runs").success(), "kill {name} {pid}");
}

/// Holds back the commit of each write of one key, in every table of records of a database: the
/// version is drawn, the transaction is open. A real gate in place of `pg_sleep`.
pub(super) struct Gate {
    url: String,
    session: tokio::process::Child,
}

impl Gate {
    /// Installs a trigger, and closes the gate for this key.
    pub(super) async fn close(url: &str, key: &str) -> Self {
        let function = format!(
            "CREATE OR REPLACE FUNCTION public.gate() RETURNS trigger LANGUAGE plpgsql
             SET lock_timeout = 0 AS
             $$ BEGIN IF new.key = '{key}' THEN PERFORM pg_advisory_xact_lock_shared(815); END IF;
             RETURN new; END $$"
        );
        sql(url, &function).await;
        let tables = "SELECT table_schema FROM information_schema.tables \
                      WHERE table_name = 'records' AND table_type = 'BASE TABLE'";
        for schema in sql(url, tables).await.lines() {
            let trigger = format!(
                "CREATE OR REPLACE TRIGGER gate AFTER INSERT OR UPDATE ON {schema}.records \
                 FOR EACH ROW EXECUTE FUNCTION public.gate()"
            );
            sql(url, &trigger).await;
        }
        let mut session = postgres_program("psql", &["-X", "-A", "-t", "-q", url]);
        session.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::null());
        let mut session = session.spawn().expect("psql runs");
        let lock = b"SELECT pg_advisory_lock(815);\n";
        session.stdin.as_mut().expect("a pipe").write_all(lock).await.expect("a write");
        let gate = Self { url: url.to_owned(), session };
        super::until("the gate is closed", async || gate.count("granted").await >= 1).await;
        gate
    }

    /// Waits until a transaction stands before the gate.
    pub(super) async fn is_reached(&self) {
        super::until("a write waits", async || self.count("NOT granted").await >= 1).await;
    }

    /// Lets everything pass from now on.
    pub(super) async fn open(mut self) {
        drop(self.session.stdin.take());
        self.session.wait().await.expect("psql ends");
    }

    async fn count(&self, which: &str) -> u32 {
        let locks = format!(
            "SELECT count(*) FROM pg_locks JOIN pg_database d ON d.oid = database \
             WHERE locktype = 'advisory' AND objid = 815 AND classid = 0 \
             AND datname = current_database() AND {which}"
        );
        sql(&self.url, &locks).await.parse().expect("a number")
    }
}
