//! One connection of a proxy: two lanes, each a reader that stamps chunks and a writer that
//! delivers them when they are due and may pass.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use terrace_core::Runtime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};

use crate::alarm::Alarm;

use super::evidence::{Counter, Counters};
use super::{Faults, Flow, Lane, reset};

const CHUNK_BYTES: usize = 16 * 1024;
/// Chunks under way in one lane: with a delay of 100 ms still room for 100 MB/s.
const CHUNKS: usize = 640;

/// How much of what a client sends first is remembered, in order to know what the connection is for.
const OPENING_BYTES: usize = 4 * 1024;

struct Chunk {
    due: Option<Instant>,
    bytes: Vec<u8>,
}

/// Forwards until both ends have closed, one end fails, or the proxy resets the connection.
pub(super) async fn serve(
    mut client: TcpStream,
    faults: watch::Receiver<Faults>,
    counters: Arc<Counters>,
) {
    let (upstream, resets) = {
        let now = faults.borrow();
        (now.upstream, now.resets)
    };
    let Ok(mut server) = TcpStream::connect(upstream).await else {
        counters.unreachable.add(1);
        return reset(&client);
    };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let runtime = Runtime::system();
    let handshake = {
        let now = faults.borrow();
        now.requests.delay + now.responses.delay
    };
    if !handshake.is_zero() {
        Alarm::fine(runtime.clone()).at(runtime.now() + handshake).await;
    }
    let has_lost_bytes = AtomicBool::new(false);
    let opening = Mutex::new(Vec::new());
    let ended_by_itself = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let lane = |choose, delivered| LaneOfConnection {
            choose,
            delivered,
            counters: &counters,
            has_lost_bytes: &has_lost_bytes,
            opening: &opening,
            is_opening: false,
            faults: faults.clone(),
        };
        let requests = lane(|faults| faults.requests, &counters.request_bytes);
        let responses = lane(|faults| faults.responses, &counters.response_bytes);
        let requests = LaneOfConnection { is_opening: true, ..requests };
        let both = async {
            tokio::try_join!(
                requests.forward(from_client, to_server),
                responses.forward(from_server, to_client)
            )
        };
        tokio::select! {
            outcome = both => outcome.is_ok(),
            () = is_reset(faults.clone(), resets, &has_lost_bytes) => {
                counters.reset.add(1);
                false
            }
        }
    };
    if !ended_by_itself {
        reset(&client);
        reset(&server);
    }
}

/// Ends when the proxy resets this connection: by name, or as it passes again after a loss.
async fn is_reset(mut faults: watch::Receiver<Faults>, born: u64, has_lost_bytes: &AtomicBool) {
    loop {
        let passes = {
            let now = faults.borrow_and_update();
            if now.resets != born {
                return;
            }
            now.requests.flow == Flow::Pass && now.responses.flow == Flow::Pass
        };
        if (passes && has_lost_bytes.load(Ordering::Relaxed)) || faults.changed().await.is_err() {
            return;
        }
    }
}

struct LaneOfConnection<'a> {
    choose: fn(&Faults) -> Lane,
    delivered: &'a Counter,
    counters: &'a Counters,
    has_lost_bytes: &'a AtomicBool,
    opening: &'a Mutex<Vec<u8>>,
    /// Whether this lane's bytes are the opening.
    is_opening: bool,
    faults: watch::Receiver<Faults>,
}

impl LaneOfConnection<'_> {
    async fn forward(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> io::Result<()> {
        let (sender, receiver) = mpsc::channel(CHUNKS);
        let (choose, faults) = (self.choose, self.faults.clone());
        tokio::try_join!(read(from, sender, choose, faults), self.write(receiver, to))?;
        Ok(())
    }

    async fn write(
        mut self,
        mut chunks: mpsc::Receiver<Chunk>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<()> {
        let alarm = Alarm::fine(Runtime::system());
        while let Some(Chunk { due, bytes }) = chunks.recv().await {
            if let Some(due) = due {
                alarm.at(due).await;
            }
            if self.is_opening {
                self.remember(&bytes);
            }
            if self.may_pass(bytes.len()).await {
                to.write_all(&bytes).await?;
                self.delivered.add(bytes.len());
            } else {
                self.counters.dropped_bytes.add(bytes.len());
                self.has_lost_bytes.store(true, Ordering::Relaxed);
            }
        }
        if self.may_pass(0).await { to.shutdown().await } else { Ok(()) }
    }

    fn remember(&self, bytes: &[u8]) {
        let mut opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let room = OPENING_BYTES.saturating_sub(opening.len());
        opening.extend(&bytes[..bytes.len().min(room)]);
    }

    /// Waits while the lane is held; whether it passes then.
    async fn may_pass(&mut self, bytes: usize) -> bool {
        let mut waited = false;
        loop {
            {
                let faults = self.faults.borrow_and_update();
                let concerned = faults.only.as_deref().is_none_or(|sent| has(self.opening, sent));
                match (self.choose)(&faults).flow {
                    Flow::Drop if concerned => return false,
                    Flow::Hold if concerned => {}
                    Flow::Pass | Flow::Drop | Flow::Hold => return true,
                }
            }
            if !waited {
                self.counters.held_bytes.add(bytes);
                waited = true;
            }
            if self.faults.changed().await.is_err() {
                return false; // the proxy is gone
            }
        }
    }
}

fn has(opening: &Mutex<Vec<u8>>, sent: &[u8]) -> bool {
    let opening = opening.lock().unwrap_or_else(PoisonError::into_inner);
    !sent.is_empty() && opening.windows(sent.len()).any(|part| part == sent)
}

async fn read(
    mut from: ReadHalf<'_>,
    chunks: mpsc::Sender<Chunk>,
    choose: fn(&Faults) -> Lane,
    faults: watch::Receiver<Faults>,
) -> io::Result<()> {
    let runtime = Runtime::system();
    loop {
        let mut bytes = Vec::with_capacity(CHUNK_BYTES);
        if from.read_buf(&mut bytes).await? == 0 {
            return Ok(());
        }
        let delay = choose(&faults.borrow()).delay;
        let due = (!delay.is_zero()).then(|| runtime.now() + delay);
        if chunks.send(Chunk { due, bytes }).await.is_err() {
            return Ok(()); // the writer failed and ends the connection
        }
    }
}
