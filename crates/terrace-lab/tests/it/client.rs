//! The smallest clients that the tests need, and waiting for what processes do.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

/// Runs SQL with `psql` and gives its output, or its complaint.
pub(crate) fn sql(url: &str, statement: &str) -> Result<String, String> {
    let postgres = terrace_lab::find_program("postgres").expect("PostgreSQL");
    let output = Command::new(postgres.with_file_name("psql"))
        .args([
            "--no-psqlrc",
            "--no-align",
            "--tuples-only",
            "--quiet",
            "--command",
            statement,
            url,
        ])
        .output()
        .expect("psql");
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Sends inline commands to a Redis after logging in, and gives the answers without the login's.
pub(crate) fn redis(url: &str, commands: &str) -> String {
    let (login, address) = parts(url);
    let answers = talk(&address, &format!("AUTH {login}\r\n{commands}\r\nQUIT\r\n"));
    answers.strip_prefix("+OK\r\n").expect("a login").trim_end_matches("+OK\r\n").to_owned()
}

/// Sends text to a server and reads until it closes the connection.
pub(crate) fn talk(address: &str, text: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a bound");
    stream.write_all(text.as_bytes()).expect("a request");
    let mut answers = String::new();
    stream.read_to_string(&mut answers).expect("answers");
    answers
}

/// The password and `host:port` of a server's URL.
pub(crate) fn parts(url: &str) -> (String, String) {
    let (login, address) = url.split_once('@').expect("a login in the URL");
    let password = login.rsplit_once(':').expect("a password").1;
    let address = address.split('/').next().expect("an address");
    (password.to_owned(), address.to_owned())
}

/// All processes as (pid, parent, state, command).
pub(crate) fn processes() -> Vec<(u32, u32, char, String)> {
    let columns = ["-A", "-ww", "-o", "pid=", "-o", "ppid=", "-o", "state=", "-o", "command="];
    let output = Command::new("ps").args(columns).output().expect("ps");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let process = |line: &str| {
        let mut words = line.split_whitespace();
        let pid = words.next()?.parse().ok()?;
        let parent = words.next()?.parse().ok()?;
        let state = words.next()?.chars().next()?;
        Some((pid, parent, state, words.collect::<Vec<_>>().join(" ")))
    };
    text.lines().filter_map(process).collect()
}

/// Whether the process runs; a zombie does not.
pub(crate) fn is_alive(pid: u32) -> bool {
    processes().iter().any(|&(one, _, state, _)| one == pid && state != 'Z')
}

/// Awaits a condition that other processes bring about; fails after a minute.
#[expect(clippy::disallowed_methods, reason = "other processes announce nothing")]
pub(crate) fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "not within a minute: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
