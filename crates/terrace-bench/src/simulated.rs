//! The generator against servers that live in memory, on paused time: what is reported is exact,
//! however loaded the machine is.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use terrace_core::Runtime;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::sync::mpsc;

use crate::answer;
use crate::api::Api;
use crate::client::{Connect, Manners};
use crate::feed::{Arrivals, Loop};
use crate::keys::{Distribution, Picker};
use crate::ledger::Ledger;
use crate::tally::Tally;
use crate::worker::Worker;
use crate::workload::{Operation, ValueBytes, Workload};
use terrace_lab::Alarm;

/// How the server treats a request that comes in at this time after the start.
type Delay = fn(Duration) -> Duration;

/// What the server shows of a key, by name: its values in the order they were written.
type Show = fn(&str, &HashMap<String, Vec<String>>) -> Option<String>;

#[derive(Clone, Copy)]
struct Server {
    delay: Delay,
    show: Show,
}

fn newest(key: &str, records: &HashMap<String, Vec<String>>) -> Option<String> {
    records.get(key)?.last().cloned()
}

/// Streams whose other ends wait to be served.
struct Memory(mpsc::UnboundedSender<DuplexStream>);

impl Connect for Memory {
    type Stream = DuplexStream;

    async fn connect(&self) -> io::Result<DuplexStream> {
        let (client, server) = tokio::io::duplex(4096);
        self.0.send(server).map_err(|_| io::ErrorKind::ConnectionRefused)?;
        Ok(client)
    }
}

impl Server {
    /// Serves one connection until its client goes.
    async fn serve(
        self,
        mut stream: DuplexStream,
        started: Instant,
        runtime: Runtime,
        records: Rc<Cell<HashMap<String, Vec<String>>>>,
    ) {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let request = str::from_utf8(&buffer[..read]).unwrap();
            let arrived = runtime.now() - started;
            // The effect first: an answer that a stall delays shows what was true before it.
            let mut all = records.take();
            let body = match request.strip_prefix("GET /read/") {
                Some(rest) => {
                    let key = rest.split(' ').next().unwrap();
                    match (self.show)(key, &all) {
                        Some(value) => format!(r#"{{"success":true,"value":"{value}"}}"#),
                        None => r#"{"success":false,"value":null}"#.to_owned(),
                    }
                }
                None => {
                    let body = request.as_bytes();
                    let text = |name| answer::text(body, name).flatten().unwrap().to_owned();
                    all.entry(text(b"\"key\"")).or_default().push(text(b"\"value\""));
                    r#"{"success":true}"#.to_owned()
                }
            };
            records.set(all);
            runtime.sleep((self.delay)(arrived)).await;
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }
}

struct Run {
    server: Server,
    offered: Loop,
    workload: &'static str,
    connections: usize,
    seconds: u64,
    timeout: Duration,
}

impl Run {
    fn new(delay: Delay, offered: Loop) -> Self {
        let server = Server { delay, show: newest };
        let timeout = Duration::from_secs(5);
        Self { server, offered, workload: "seed", connections: 100, seconds: 10, timeout }
    }

    async fn go(self) -> Tally {
        let runtime = Runtime::system();
        let (sender, mut streams) = mpsc::unbounded_channel();
        let started = runtime.now();
        let ledger = Ledger::new(50, 3);
        let records = Rc::default();
        let (server, clock) = (self.server, runtime.clone());
        let serve = async {
            let mut connections = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some(stream) = streams.recv() => {
                        let records = Rc::clone(&records);
                        connections.push(server.serve(stream, started, clock.clone(), records));
                    }
                    Some(()) = connections.next() => {}
                }
            }
        };
        let worker = Worker {
            connect: &Memory(sender),
            api: &Api::new("memory", &[]),
            ledger: &ledger,
            epoch: started,
            workload: &Workload::named(self.workload).unwrap(),
            picker: Picker::new(Distribution::Zipfian, 50),
            manners: Manners {
                timeout: self.timeout,
                value_bytes: ValueBytes { from: 20, to: 20 },
                sends_tokens: false,
            },
            offered: self.offered,
            connections: self.connections,
            time: Duration::from_secs(self.seconds),
            seed: 11,
            writer: 1,
            sequence: 0,
            stop: &AtomicBool::new(false),
            runtime: runtime.clone(),
            alarm: Alarm::coarse(runtime),
        };
        tokio::select! {
            () = serve => unreachable!("it serves for ever"),
            (tally, _) = worker.run(|_| {}) => tally,
        }
    }
}

fn quantile(tally: &Tally, quantile: f64) -> f64 {
    let mut all = tally.latencies[Operation::Read as usize].clone();
    all.add(&tally.latencies[Operation::Update as usize]).unwrap();
    #[expect(clippy::cast_precision_loss, reason = "milliseconds")]
    let ms = all.value_at_quantile(quantile) as f64 / 1000.0;
    ms
}

/// Answers in 2 ms, but for one second from the fourth it stands still.
fn stops_for_a_second(at: Duration) -> Duration {
    let usual = Duration::from_millis(2);
    let stall = Duration::from_secs(4)..Duration::from_secs(5);
    if stall.contains(&at) { stall.end - at + usual } else { usual }
}

#[tokio::test(start_paused = true)]
async fn an_open_loop_shows_a_server_that_stops_for_a_second() {
    let mut run = Run::new(stops_for_a_second, Loop::Open(1000.0, Arrivals::Constant));
    run.connections = 2000;
    let tally = run.go().await;
    assert!((9_990..=10_000).contains(&tally.done), "{}", tally.done);
    // A tenth of the requests waited for between 0 and 1 s: half of them for more than 0.5 s.
    let (p50, p95, p999) = (quantile(&tally, 0.5), quantile(&tally, 0.95), quantile(&tally, 0.999));
    assert!((2.0..4.0).contains(&p50), "p50 {p50}");
    assert!((480.0..520.0).contains(&p95), "p95 {p95}");
    assert!((980.0..1010.0).contains(&p999), "p99.9 {p999}");
}

#[tokio::test(start_paused = true)]
async fn too_few_connections_do_not_hide_a_stall_either() {
    let mut run = Run::new(stops_for_a_second, Loop::Open(1000.0, Arrivals::Constant));
    run.connections = 10;
    let tally = run.go().await;
    assert!(tally.most_waiting > 900, "{}", tally.most_waiting);
    let p95 = quantile(&tally, 0.95);
    assert!(p95 > 480.0, "p95 {p95}");
}

#[tokio::test(start_paused = true)]
async fn a_closed_loop_hides_the_same_stall() {
    let mut run = Run::new(stops_for_a_second, Loop::Closed);
    run.connections = 10;
    let tally = run.go().await;
    // One slow request a connection, among tens of thousands.
    let p999 = quantile(&tally, 0.999);
    assert!(tally.done > 20_000 && p999 < 10.0, "{} answers, p99.9 {p999}", tally.done);
}

#[tokio::test(start_paused = true)]
async fn a_fixed_delay_is_reported_as_it_is() {
    for offered in [Loop::Closed, Loop::Open(100.0, Arrivals::Constant)] {
        let tally = Run::new(|_| Duration::from_millis(5), offered).go().await;
        for at in [0.01, 0.5, 0.99, 1.0] {
            let ms = quantile(&tally, at);
            assert!((4.99..=5.1).contains(&ms), "{offered:?}: {at} is {ms} ms");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn timeouts_count_at_their_deadline_and_what_was_never_sent_is_said() {
    let mut run = Run::new(|_| Duration::from_secs(60), Loop::Open(100.0, Arrivals::Poisson));
    (run.connections, run.seconds, run.timeout) = (10, 4, Duration::from_secs(1));
    let tally = run.go().await;
    assert_eq!(tally.done, 0);
    let count = |name: &str| {
        let of_kind = tally.failures.iter().filter(|(kind, _)| kind.name() == name);
        of_kind.map(|(_, count)| *count).sum::<u64>()
    };
    assert!(count("timeout") >= 40 && count("unsent") > 200, "{:?}", tally.failures);
    assert!((999.0..1002.0).contains(&quantile(&tally, 0.01)), "{}", quantile(&tally, 0.01));
}

#[tokio::test(start_paused = true)]
async fn arrivals_come_at_the_rate_that_was_asked_for() {
    for arrivals in [Arrivals::Poisson, Arrivals::Constant] {
        let run = Run::new(|_| Duration::from_millis(1), Loop::Open(2000.0, arrivals));
        let tally = run.go().await;
        // Four standard deviations of a Poisson count.
        assert!(tally.done.abs_diff(20_000) < 4 * 142, "{arrivals:?}: {}", tally.done);
    }
}

/// What the verifier finds against a server that shows this.
async fn found(show: Show) -> (u64, [u64; 4]) {
    let mut run = Run::new(|_| Duration::from_millis(1), Loop::Closed);
    (run.server.show, run.connections, run.seconds) = (show, 4, 2);
    let findings = run.go().await.findings;
    let counts = [findings.stale, findings.missing, findings.swapped, findings.made_up];
    assert_eq!(findings.wrong() > 0, !findings.examples.is_empty());
    (findings.judged, counts)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_lies_is_found_out() {
    let (judged, wrong) = found(newest).await;
    assert!(judged > 1000 && wrong == [0; 4], "an honest server: {wrong:?}");
    let (_, [stale, rest @ ..]) = found(|key, all| all.get(key)?.first().cloned()).await;
    assert!(stale > 100 && rest == [0; 3], "stale: {stale}, {rest:?}");
    let (_, [stale, missing, rest @ ..]) = found(|_, _| None).await;
    assert!(missing > 100 && stale == 0 && rest == [0; 2], "lost: {missing}");
    let another = |key: &str, all: &HashMap<String, Vec<String>>| {
        let mut others = all.iter().filter(|(other, _)| *other != key);
        others.next()?.1.last().cloned()
    };
    let (_, [.., swapped, _]) = found(another).await;
    assert!(swapped > 100, "swapped: {swapped}");
    let (_, [stale, missing, swapped, made_up]) = found(|_, _| Some("Ada".into())).await;
    assert!(made_up > 100 && [stale, missing, swapped] == [0; 3], "made up: {made_up}");
}
