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
use crate::api::{Api, Dialect};
use crate::client::{Connect, Manners};
use crate::feed::{Arrivals, Loop};
use crate::figures::Check;
use crate::keys::{Distribution, Picker};
use crate::ledger::Ledger;
use crate::prepare::{Abilities, Preparation};
use crate::tally::{Findings, Tally};
use crate::worker::Worker;
use crate::workload::{Operation, ValueBytes, Workload};
use terrace_lab::Alarm;

const KEYS: u32 = 50;

/// How the server treats a request that comes in at this time after the start.
type Delay = fn(Duration) -> Duration;

/// What the server keeps by name: the values of a key and the posts of a user, in the order they came.
type Kept = HashMap<String, Vec<String>>;

/// What the server shows of a key.
type Show = fn(&str, &Kept) -> Option<String>;

/// What the server shows of a user.
type List = fn(&str, &Kept) -> Vec<String>;

#[derive(Clone, Copy)]
struct Server {
    dialect: Dialect,
    delay: Delay,
    show: Show,
    list: List,
}

fn newest(key: &str, kept: &Kept) -> Option<String> {
    kept.get(key)?.last().cloned()
}

fn all(user: &str, kept: &Kept) -> Vec<String> {
    kept.get(user).cloned().unwrap_or_default()
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
        records: Rc<Cell<Kept>>,
    ) {
        let mut buffer = vec![0; 4096];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let request = str::from_utf8(&buffer[..read]).unwrap();
            let arrived = runtime.now() - started;
            // The effect first: an answer that a stall delays shows what was true before it.
            let mut kept = records.take();
            let (status, body) = self.answer(request, &mut kept);
            records.set(kept);
            runtime.sleep((self.delay)(arrived)).await;
            let length = body.len();
            let answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n\r\n{body}");
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
    }

    fn answer(self, request: &str, kept: &mut Kept) -> (u16, String) {
        let (documents, path) =
            (self.dialect == Dialect::DOCUMENTS, request.split(' ').nth(1).unwrap());
        let text = |name| answer::text(request.as_bytes(), name).flatten().map(str::to_owned);
        if let (true, Some(user)) = (documents, path.strip_prefix("/read/transaction/")) {
            let entry = |kind: String| format!(r#"{{"transaction_type":"{kind}"}}"#);
            let entries: Vec<_> = (self.list)(user, kept).into_iter().map(entry).collect();
            return (200, format!(r#"{{"success":true,"value":[{}]}}"#, entries.join(",")));
        }
        if let Some(key) = path.strip_prefix(self.dialect.read) {
            let shown = (self.show)(key, kept).map(|value| format!(r#""value":"{value}""#));
            let body = match (documents, shown) {
                (false, Some(value)) => format!(r#"{{"success":true,{value}}}"#),
                (false, None) => r#"{"success":false,"value":null}"#.to_owned(),
                (true, Some(value)) => format!(r#"{{"success":true,"data":{{{value}}}}}"#),
                (true, None) => r#"{"success":false,"data":{"message":"none"}}"#.to_owned(),
            };
            return (200, body);
        }
        let written = text(b"\"key\"").zip(text(b"\"value\""));
        let posted = text(b"\"user_id\"").zip(text(b"\"transaction_type\""));
        match written.or(posted.filter(|_| documents)) {
            Some((name, value)) => kept.entry(name).or_default().push(value),
            // What it can is asked.
            None if documents && path.starts_with("/v1/transactions?") => {}
            None => return (404, "{}".to_owned()),
        }
        (200, r#"{"success":true}"#.to_owned())
    }

    /// Does this while the server serves.
    async fn during<T>(self, work: impl AsyncFnOnce(&Memory) -> T) -> T {
        let runtime = Runtime::system();
        let (sender, mut streams) = mpsc::unbounded_channel();
        let memory = Memory(sender);
        let (started, records) = (runtime.now(), Rc::<Cell<Kept>>::default());
        let serve = async {
            let mut connections = FuturesUnordered::new();
            loop {
                tokio::select! {
                    Some(stream) = streams.recv() => {
                        let records = Rc::clone(&records);
                        connections.push(self.serve(stream, started, runtime.clone(), records));
                    }
                    Some(()) = connections.next() => {}
                }
            }
        };
        tokio::select! {
            () = serve => unreachable!("it serves for ever"),
            done = work(&memory) => done,
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
        let server = Server { dialect: Dialect::RECORDS, delay, show: newest, list: all };
        let timeout = Duration::from_secs(5);
        Self { server, offered, workload: "seed", connections: 100, seconds: 10, timeout }
    }

    async fn go(self) -> Tally {
        self.server.during(async |memory| self.load(memory, &Ledger::new(KEYS, 3)).await).await
    }

    async fn load(&self, memory: &Memory, ledger: &Ledger) -> Tally {
        let runtime = Runtime::system();
        let mut api = Api::new("memory", &[]);
        api.speak(self.server.dialect);
        let worker = Worker {
            connect: memory,
            api: &api,
            ledger,
            epoch: runtime.now(),
            workload: &Workload::named(self.workload).unwrap(),
            picker: Picker::new(Distribution::Zipfian, KEYS),
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
        worker.run(|_| {}).await.0
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

/// A short run against a server that may lie.
fn short() -> Run {
    let mut run = Run::new(|_| Duration::from_millis(1), Loop::Closed);
    (run.connections, run.seconds) = (4, 2);
    run
}

/// What the verifier finds against a server that shows this.
async fn found(show: Show) -> (u64, [u64; 4]) {
    let mut run = short();
    run.server.show = show;
    counts(run.go().await.findings)
}

fn counts(findings: Findings) -> (u64, [u64; 4]) {
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
    let another = |key: &str, all: &Kept| {
        let mut others = all.iter().filter(|(other, _)| *other != key);
        others.next()?.1.last().cloned()
    };
    let (_, [.., swapped, _]) = found(another).await;
    assert!(swapped > 100, "swapped: {swapped}");
    let (_, [stale, missing, swapped, made_up]) = found(|_, _| Some("Ada".into())).await;
    assert!(made_up > 100 && [stale, missing, swapped] == [0; 3], "made up: {made_up}");
}

/// A server of documents and transactions that lists this of a user.
fn polyglot(list: List) -> Run {
    let mut run = short();
    // Answers overtake each other: a statement may show a post before the post is answered.
    (run.offered, run.connections) = (Loop::Open(4000.0, Arrivals::Poisson), 32);
    let delay = |at: Duration| Duration::from_millis(1 + u64::from(at.subsec_millis() % 4));
    run.server = Server { dialect: Dialect::DOCUMENTS, delay, list, ..run.server };
    run.workload = "polyglot";
    run
}

#[tokio::test(start_paused = true)]
async fn a_lost_a_doubled_and_a_made_up_posting_are_found() {
    let listed = async |list| counts(polyglot(list).go().await.findings);
    let (judged, wrong) = listed(all).await;
    assert!(judged > 1000 && wrong == [0; 4], "an honest server: {wrong:?}");
    let (_, wrong) = listed(|user, kept| all(user, kept).into_iter().skip(1).collect()).await;
    assert!(wrong[1] > 50 && wrong[1] == wrong.iter().sum::<u64>(), "lost: {wrong:?}");
    let doubled = |user: &str, kept: &Kept| {
        let all = all(user, kept);
        all.first().cloned().into_iter().chain(all).collect()
    };
    let (_, wrong) = listed(doubled).await;
    assert!(wrong[3] > 50 && wrong[3] == wrong.iter().sum::<u64>(), "doubled: {wrong:?}");
    let made_up = |user: &str, kept: &Kept| {
        all(user, kept).into_iter().chain(["credit".to_owned()]).collect()
    };
    let (_, wrong) = listed(made_up).await;
    assert!(wrong[3] > 50 && wrong[3] == wrong.iter().sum::<u64>(), "made up: {wrong:?}");
    let another = |user: &str, kept: &Kept| {
        let others = kept.iter().filter(|(name, _)| name.len() > 16 && *name != user);
        others.map(|(_, posts)| posts[0].clone()).take(1).collect()
    };
    let (_, wrong) = listed(another).await;
    assert!(wrong[2] > 50 && wrong[3] == 0, "swapped: {wrong:?}");
}

/// Asks what the server can, puts load on, and reads everything once more.
async fn from_end_to_end(run: Run) -> Result<(Abilities, Check), String> {
    let (ledger, runtime, stop) = (Ledger::new(KEYS, 3), Runtime::system(), AtomicBool::new(false));
    let mut api = Api::new("memory", &[]);
    let work = async |memory: &Memory| {
        let preparation = Preparation {
            connect: memory,
            api: &api.clone(),
            ledger: &ledger,
            epoch: runtime.now(),
            runtime: &runtime,
            timeout: run.timeout,
            stop: &stop,
        };
        let abilities = preparation.probe().await?;
        abilities.suffice(&Workload::named(run.workload).unwrap())?;
        run.load(memory, &ledger).await;
        api.speak(abilities.dialect);
        let check = Preparation { api: &api, ..preparation }.check(abilities).await?;
        Ok((abilities, check))
    };
    run.server.during(work).await
}

#[tokio::test(start_paused = true)]
async fn the_last_read_covers_documents_and_statements() {
    let (abilities, check) = from_end_to_end(polyglot(all)).await.unwrap();
    assert_eq!((abilities.dialect, abilities.transactions), (Dialect::DOCUMENTS, true));
    let statements = check.of - u64::from(KEYS);
    assert!(statements > 40 && check.read == check.of, "{check:?}");
    assert_eq!((check.lost, check.wrong), (0, 0), "{check:?}");
    let lost = polyglot(|user, kept| all(user, kept).into_iter().skip(1).collect());
    let (_, check) = from_end_to_end(lost).await.unwrap();
    assert_eq!((check.lost, check.wrong), (statements, 0), "{check:?}");
    assert!(check.examples[0].contains("lost 1 transactions"), "{check:?}");
}

#[tokio::test(start_paused = true)]
async fn a_workload_that_the_server_has_no_endpoints_for_is_not_applicable() {
    let mut run = short();
    run.workload = "polyglot";
    let why = from_end_to_end(run).await.unwrap_err();
    assert!(why.contains("workload polyglot") && why.contains("/v1/transactions"), "{why}");
    let mut run = polyglot(all);
    run.workload = "ycsb-e";
    let why = from_end_to_end(run).await.unwrap_err();
    assert!(why.contains("no GET /v1/documents"), "{why}");
}
