//! The scripts, each one atomic step in the server.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, ErrorKind, RedisResult, Script, ServerErrorKind, Value};

/// All scripts of the cache.
#[derive(Debug)]
pub(super) struct Scripts {
    pub(super) epoch: Script,
    pub(super) fill: Script,
    pub(super) invalidate: Script,
    pub(super) clear: Script,
    pub(super) heartbeat: Script,
}

impl Scripts {
    #[cfg(not(feature = "mutants"))]
    pub(super) fn of(_: &super::RedisCacheOptions) -> Self {
        Self::new()
    }

    fn new() -> Self {
        Self {
            epoch: Script::new(include_str!("lua/epoch.lua")),
            fill: Script::new(include_str!("lua/fill.lua")),
            invalidate: Script::new(include_str!("lua/invalidate.lua")),
            clear: Script::new(include_str!("lua/clear.lua")),
            heartbeat: Script::new(include_str!("lua/heartbeat.lua")),
        }
    }

    /// The variant that the options ask for.
    #[cfg(feature = "mutants")]
    pub(super) fn of(options: &super::RedisCacheOptions) -> Self {
        let mut scripts = Self::new();
        if let Some(mutant) = options.mutant {
            mutant.break_one_of(&mut scripts);
        }
        scripts
    }

    /// Makes the server know all scripts.
    pub(super) async fn load(&self, connection: &mut MultiplexedConnection) -> RedisResult<()> {
        let all = [&self.epoch, &self.fill, &self.invalidate, &self.clear, &self.heartbeat];
        for script in all {
            script.load_async(connection).await?;
        }
        Ok(())
    }
}

/// The beginning of a call: `EVALSHA` of a script with so many keys. Keys and arguments follow.
pub(super) fn call_of(script: &Script, keys: usize) -> Cmd {
    let mut command = redis::cmd("EVALSHA");
    command.arg(script.get_hash()).arg(keys);
    command
}

/// Calls a script, and loads it first when the server forgot it (`SCRIPT FLUSH`).
pub(super) async fn call(
    connection: &mut MultiplexedConnection,
    script: &Script,
    command: &Cmd,
) -> RedisResult<Value> {
    match connection.send_packed_command(command).await.and_then(Value::extract_error) {
        Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
            script.load_async(connection).await?;
            connection.send_packed_command(command).await.and_then(Value::extract_error)
        }
        answer => answer,
    }
}
