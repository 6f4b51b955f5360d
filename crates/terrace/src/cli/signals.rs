//! The signals that ask a command to end: SIGTERM, Ctrl-C, and SIGHUP, which a terminal that closes
//! sends.

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::Failure;

/// Who asks for the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum AskedBy {
    /// A supervisor, by SIGTERM.
    Supervisor,
    /// Whoever sits at the terminal, or its closing.
    Terminal,
}

/// Calls `stop` at the first signal; the second ends the process with this code. On a thread of its own,
/// so that nothing the process does can keep a signal from being heard.
pub(super) fn listen(
    code: i32,
    stop: impl FnOnce(AskedBy) + Send + 'static,
) -> Result<(), Failure> {
    let failed = |error| Failure::failed(format!("signals cannot be heard: {error}"));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(failed)?;
    let mut signals = {
        let _within = runtime.enter();
        Signals::new().map_err(failed)?
    };
    let hear = move || {
        runtime.block_on(async {
            stop(signals.next().await);
            signals.next().await;
        });
        // Without a line in the log: whoever reads it may be what the process hangs on.
        std::process::exit(code);
    };
    std::thread::Builder::new().name("signals".into()).spawn(hear).map(drop).map_err(failed)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let hangup = (!hangup_is_ignored()).then(|| signal(SignalKind::hangup())).transpose()?;
        let terminate = signal(SignalKind::terminate())?;
        Ok(Self { terminate, interrupt: signal(SignalKind::interrupt())?, hangup })
    }

    async fn next(&mut self) -> AskedBy {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => AskedBy::Supervisor,
            _ = self.interrupt.recv() => AskedBy::Terminal,
            _ = hangup => AskedBy::Terminal,
        }
    }
}

/// Whether whoever started the process wants it to outlive its terminal, as `nohup` does (proc(5),
/// `SigIgn`).
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    // The lowest bit is of signal 1, SIGHUP.
    ignored.is_some_and(|mask| mask & 1 == 1)
}
