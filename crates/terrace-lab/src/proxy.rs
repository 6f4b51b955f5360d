//! A TCP proxy that breaks the traffic between one client and one server as it is told.
//!
//! Each instance of a test reaches each engine through a proxy of its own, so that a fault can be
//! put between exactly two programs. The proxy counts what it did ([`Evidence`]): a test that
//! injects a fault asserts that the fault happened.

mod connection;
mod evidence;

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::evidence::Counters;
pub use self::evidence::Evidence;

/// Which way bytes flow through a [`FaultProxy`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server.
    Requests,
    /// From the server to the client.
    Responses,
    /// Both ways.
    Both,
}

/// What happens to bytes of one direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flow {
    Pass,
    Hold,
    Drop,
}

#[derive(Debug, Clone, Copy)]
struct Lane {
    flow: Flow,
    delay: Duration,
}

const OPEN: Lane = Lane { flow: Flow::Pass, delay: Duration::ZERO };

/// What the proxy does now; every connection watches it.
#[derive(Debug, Clone)]
struct Faults {
    upstream: SocketAddr,
    refuse: bool,
    /// Connections that began before the last increment are reset.
    resets: u64,
    requests: Lane,
    responses: Lane,
    /// Only connections that have sent this are held or lose bytes.
    only: Option<Arc<[u8]>>,
}

impl Faults {
    fn lanes(&mut self, direction: Direction, change: impl Fn(&mut Lane)) {
        if direction != Direction::Responses {
            change(&mut self.requests);
        }
        if direction != Direction::Requests {
            change(&mut self.responses);
        }
    }
}

/// A proxy on a free port of 127.0.0.1; it ends, with its connections, when it is dropped.
///
/// A control takes effect at once, on existing connections too. Controls combine: a delay stays
/// while responses are dropped. [`pass`](Self::pass) ends all of them.
#[derive(Debug)]
pub struct FaultProxy {
    address: SocketAddr,
    faults: watch::Sender<Faults>,
    counters: Arc<Counters>,
    accepting: JoinHandle<()>,
}

impl FaultProxy {
    /// Listens on a free port and forwards to `upstream`, which need not listen yet.
    ///
    /// # Errors
    /// When no port can be had.
    #[expect(clippy::disallowed_methods, reason = "a proxy carries real traffic in real time")]
    pub async fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let (refuse, resets, requests, responses) = (false, 0, OPEN, OPEN);
        let only = None;
        let (faults, watched) =
            watch::channel(Faults { upstream, refuse, resets, requests, responses, only });
        let counters = Arc::new(Counters::default());
        let accepting = tokio::spawn(accept(listener, watched, Arc::clone(&counters)));
        Ok(Self { address, faults, counters, accepting })
    }

    /// The same for a server on this port of 127.0.0.1.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn to_port(port: u16) -> io::Result<Self> {
        Self::start(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
    }

    /// Where clients connect.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of the upstream, as one of the proxy.
    #[must_use]
    pub fn url(&self, upstream_url: &str) -> String {
        let upstream = self.faults.borrow().upstream.to_string();
        upstream_url.replace(&upstream, &self.address.to_string())
    }

    /// What happened so far.
    #[must_use]
    pub fn evidence(&self) -> Evidence {
        self.counters.evidence()
    }

    /// Ends every fault. Held bytes are delivered. Connections that lost bytes are reset, as
    /// neither end could make sense of the rest.
    pub fn pass(&self) {
        self.faults.send_modify(|faults| {
            faults.refuse = false;
            faults.only = None;
            faults.lanes(Direction::Both, |lane| *lane = OPEN);
        });
    }

    /// Resets the connections, and every new one as soon as it is accepted.
    pub fn cut(&self) {
        self.faults.send_modify(|faults| {
            faults.refuse = true;
            faults.resets += 1;
        });
    }

    /// Resets the connections once; new ones are served.
    pub fn reset(&self) {
        self.faults.send_modify(|faults| faults.resets += 1);
    }

    /// Accepts connections and discards what arrives in this direction.
    pub fn blackhole(&self, direction: Direction) {
        self.set_flow(direction, Flow::Drop);
    }

    /// Keeps what arrives in this direction, and delivers it after [`pass`](Self::pass): a network
    /// that sends its packets again.
    pub fn hold(&self, direction: Direction) {
        self.set_flow(direction, Flow::Hold);
    }

    /// Limits [`hold`](Self::hold) and [`blackhole`](Self::blackhole), until [`pass`](Self::pass), to
    /// connections that have sent these bytes among their first 4 KiB, such as `SUBSCRIBE`.
    pub fn only(&self, sent: &[u8]) {
        self.faults.send_modify(|faults| faults.only = Some(sent.into()));
    }

    /// Delivers every byte of this direction so much later, without limiting the throughput.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.faults.send_modify(|faults| faults.lanes(direction, |lane| lane.delay = delay));
    }

    /// Forwards to another server from now on, and resets the connections to the former one.
    pub fn retarget(&self, upstream: SocketAddr) {
        self.faults.send_modify(|faults| {
            faults.upstream = upstream;
            faults.resets += 1;
        });
    }

    fn set_flow(&self, direction: Direction, flow: Flow) {
        self.faults.send_modify(|faults| faults.lanes(direction, |lane| lane.flow = flow));
    }
}

impl Drop for FaultProxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

#[expect(clippy::disallowed_methods, reason = "a proxy carries real traffic in real time")]
async fn accept(listener: TcpListener, faults: watch::Receiver<Faults>, counters: Arc<Counters>) {
    // Accepting fails for one connection (reset before it was taken), not for the listener.
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if faults.borrow().refuse {
            counters.refused.add(1);
            reset(&client);
        } else {
            counters.accepted.add(1);
            tokio::spawn(connection::serve(client, faults.clone(), Arc::clone(&counters)));
        }
    }
}

/// Lets the connection end with RST instead of FIN when it is dropped.
fn reset(stream: &TcpStream) {
    // It fails where the connection has ended already.
    let _ = stream.set_zero_linger();
}
