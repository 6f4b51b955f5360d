//! What the machine must allow for a run: else its figures would be those of the limit.

use terrace_bench::figures::Settings;
use terrace_bench::machine::{allow_open_files, ports_of_connections};

use super::super::Failure;

/// Files beside the connections: of the runtimes, of levels that are started, of the report.
const OTHERS: usize = 100;
/// Files of a worker's runtime.
const OF_A_THREAD: usize = 8;

/// Raises the limit on open files as far as the run needs and the system allows.
pub(super) fn check(settings: &Settings) -> Result<(), Failure> {
    let closed = settings.connections.unwrap_or(0);
    let connections = closed.max(settings.open_connections);
    let fewer = match closed > settings.open_connections {
        true => ", or take fewer with --connections",
        false => "",
    };
    if let Some(ports) = ports_of_connections().filter(|ports| *ports < connections) {
        return Err(Failure::usage(format!(
            "{connections} connections need as many ports, and this machine has {ports} for them; \
             allow more (sysctl net.ipv4.ip_local_port_range){fewer}"
        )));
    }
    let needed = connections + OTHERS + OF_A_THREAD * settings.threads;
    allow_open_files(needed as u64).map_err(|allowed| {
        Failure::usage(format!(
            "{connections} connections need {needed} open files, and this process may open {allowed}; \
             raise the limit (ulimit -n){fewer}"
        ))
    })
}
