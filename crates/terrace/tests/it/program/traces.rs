//! Spans of requests, as a collector of OpenTelemetry gets them.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span, span::SpanKind};
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::{Program, Stores, free_port, terrace};

/// Long enough for a busy machine: what is waited for comes, or something is broken.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long requests in flight may take when a process ends, by default.
const DRAIN: Duration = Duration::from_secs(10);

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// What a key and a client's name hold in these tests, and no span may.
const SECRET: &str = "sentinel";

/// A collector that remembers what it gets.
struct Collector {
    url: String,
    spans: watch::Receiver<Vec<Span>>,
    everything: watch::Receiver<Vec<ResourceSpans>>,
}

impl Collector {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let ((got, spans), (all, everything)) = (watch::channel(vec![]), watch::channel(vec![]));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let body = posted(&mut stream).await;
                let request = ExportTraceServiceRequest::decode(&*body).expect("OTLP");
                let scopes = request.resource_spans.iter().flat_map(|it| &it.scope_spans);
                let new = scopes.flat_map(|it| &it.spans).cloned().collect::<Vec<_>>();
                all.send_modify(|all| all.extend(request.resource_spans));
                got.send_modify(|spans| spans.extend(new));
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
                let _ = stream.write_all(answer).await;
            }
        });
        Self { url, spans, everything }
    }

    /// The spans that it has once they are what is waited for.
    async fn once(&mut self, mut come: impl FnMut(&[Span]) -> bool) -> Vec<Span> {
        let waited = tokio::time::timeout(PATIENCE, self.spans.wait_for(|spans| come(spans)));
        let come = waited.await.map(|spans| spans.expect("the collector runs").clone());
        come.unwrap_or_else(|_| panic!("not among {:?}", names(&self.spans.borrow())))
    }
}

/// The body of one request to `/v1/traces`.
async fn posted(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        assert_ne!(stream.read_buf(&mut bytes).await.expect("bytes"), 0, "the request is cut off");
        let Some(end) = bytes.windows(4).position(|it| it == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec()).expect("text").to_lowercase();
        assert!(head.starts_with("post /v1/traces http/1.1\r\n"), "{head}");
        assert!(head.contains("content-type: application/x-protobuf"), "{head}");
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.expect("a length").trim().parse().expect("a number");
        if bytes.len() >= end + 4 + length {
            return bytes.split_off(end + 4);
        }
    }
}

fn names(spans: &[Span]) -> Vec<&str> {
    spans.iter().map(|span| span.name.as_str()).collect()
}

fn text(span: &Span, attribute: &str) -> Option<String> {
    let found = span.attributes.iter().find(|it| it.key == attribute)?;
    match found.value.as_ref()?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        other => panic!("{other:?}"),
    }
}

fn hex(id: &[u8]) -> String {
    id.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The spans of the trace of `span` from it downwards, each the parent of the next.
fn chain<'a>(spans: &'a [Span], span: &'a Span) -> Vec<&'a Span> {
    let below = |above: &Span| {
        let is_below =
            |it: &&Span| (&it.trace_id, &it.parent_span_id) == (&above.trace_id, &above.span_id);
        spans.iter().find(is_below)
    };
    std::iter::successors(Some(span), |above| below(above)).collect()
}

impl Program {
    /// The status of a read under a key that holds the secret, by a client whose name does, too.
    async fn secretly_read(&self, headers: &[(&str, &str)]) -> u16 {
        let request = self.client.get(format!("{}/read/{SECRET}-{}", self.url, headers.len()));
        let request = request.header("X-Client-ID", format!("{SECRET}-client"));
        let request = headers.iter().fold(request, |it, (name, value)| it.header(*name, *value));
        request.send().await.expect("an answer").status().as_u16()
    }

    /// A figure of `/metrics`.
    async fn figure(&self, name: &str) -> u64 {
        let text = self.get("/metrics").await.text().await.expect("text");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map_or(0, |number| number.parse().expect("a number"))
    }
}

const KEY: &str = "somebody has made this up";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_is_a_span_and_so_is_each_layer_that_handles_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut collector = Collector::start().await;
    let log = directory.path().join("log");
    let mut command = terrace(&["serve", "10", "--data-dir"]);
    command.arg(directory.path().join("data")).env("API_KEY", KEY);
    command.env("TERRACE_TRACES_ENDPOINT", &collector.url).env("TERRACE_LOG_FORMAT", "json");
    command.stderr(std::fs::File::create(&log).expect("a file"));
    let program = Program::start(command).await;

    let parent = format!("00-{TRACE}-{PARENT}-01");
    let sent = [("X-API-Key", KEY), ("traceparent", &parent)];
    assert_eq!(program.secretly_read(&sent).await, 200);
    let is_continued =
        |span: &&Span| hex(&span.trace_id) == TRACE && span.kind() == SpanKind::Server;
    let spans = collector.once(|spans| spans.iter().any(|it| is_continued(&it))).await;
    let request = spans.iter().find(is_continued).expect("it has come");
    assert_eq!(hex(&request.parent_span_id), PARENT);
    for (attribute, wanted) in [
        ("http.request.method", "GET"),
        ("http.route", "/read/{key}"),
        ("http.response.status_code", "200"),
        ("url.scheme", "http"),
        ("terrace.level", "10-enterprise-grade"),
    ] {
        assert_eq!(text(request, attribute).as_deref(), Some(wanted), "{attribute}");
    }
    let layers = [
        "GET /read/{key}",
        "FillOnWrite read",
        "NearCache read",
        "SingleFlight read",
        "CacheAside read",
        "ShardRouter read",
        "Retry read",
        "CircuitBreaker read",
        "ConcurrencyLimit read",
        "Coalesce read",
    ];
    let met = chain(&spans, request).into_iter().map(|span| span.name.as_str());
    assert_eq!(met.collect::<Vec<_>>(), layers);

    // What a guard refuses has a span, and reaches no layer. The log says of both ids what it was.
    let trace = TRACE.replace('0', "1");
    let parent = format!("00-{trace}-{PARENT}-01");
    let sent = [("X-API-Key", "wrong"), ("traceparent", &parent), ("X-Request-ID", "order-7")];
    assert_eq!(program.secretly_read(&sent).await, 401);
    let is_refused = |span: &&Span| hex(&span.trace_id) == trace;
    let spans = collector.once(|spans| spans.iter().any(|it| is_refused(&it))).await;
    let refused = spans.iter().filter(is_refused).collect::<Vec<_>>();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(text(refused[0], "http.response.status_code").as_deref(), Some("401"));
    assert!(program.terminate().await.success());
    let lines = std::fs::read_to_string(log).expect("the log");
    let lines =
        lines.lines().map(|it| serde_json::from_str::<serde_json::Value>(it).expect("JSON"));
    let audit = lines.into_iter().find(|line| line["fields"]["message"] == "refused");
    let audit = audit.expect("a line");
    let ids = (&audit["fields"]["request_id"], &audit["fields"]["trace_id"]);
    assert_eq!(ids, (&"order-7".into(), &trace.into()));

    let said = format!("{:?}", collector.everything.borrow());
    assert!(
        said.contains("/read/{key}") && !said.contains(SECRET) && !said.contains(KEY),
        "{said}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_decides_is_followed_and_of_the_others_one_in_so_many_is_traced() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut collector = Collector::start().await;
    let environment = [
        ("TERRACE_TRACES_ENDPOINT", &*collector.url),
        ("TERRACE_TRACES_SAMPLE_ONE_IN", "1000000000"),
    ];
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve_with(5, &stores, &[], &environment).await;
    let (traced, other) = (format!("00-{TRACE}-{PARENT}-01"), format!("00-{TRACE}-{PARENT}-00"));
    for _ in 0..20 {
        assert_eq!(program.secretly_read(&[]).await, 200);
        assert_eq!(program.secretly_read(&[("traceparent", &other)]).await, 200);
        assert_eq!(program.secretly_read(&[("traceparent", "of another form")]).await, 200);
    }
    assert_eq!(program.secretly_read(&[("traceparent", &traced)]).await, 200);
    collector.once(|spans| spans.iter().any(|it| it.kind() == SpanKind::Server)).await;
    assert!(program.terminate().await.success());
    let spans = collector.spans.borrow().clone();
    let requests = spans.iter().filter(|it| it.kind() == SpanKind::Server).collect::<Vec<_>>();
    assert_eq!((requests.len(), hex(&requests[0].trace_id)), (1, TRACE.to_owned()));
    assert!(spans.iter().all(|span| hex(&span.trace_id) == TRACE), "{:?}", names(&spans));
}

/// A write is accepted in one trace and applied in another, which names the first.
async fn is_linked(level: u8, layers: &[&str], applying: &str) -> Vec<String> {
    let directory = tempfile::tempdir().expect("a directory");
    let mut collector = Collector::start().await;
    let environment = [("TERRACE_TRACES_ENDPOINT", &*collector.url)];
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve_with(level, &stores, &[], &environment).await;
    assert!(program.write(SECRET, "1").await);
    let find = |spans: &[Span], is: &dyn Fn(&Span) -> bool| spans.iter().find(|it| is(it)).cloned();
    let is_request = |span: &Span| span.name == "POST /write";
    let is_applying = |span: &Span| span.kind() == SpanKind::Consumer;
    let both = |spans: &[Span]| Some((find(spans, &is_request)?, find(spans, &is_applying)?));
    let spans = collector.once(|spans| both(spans).is_some()).await;
    let (accepted, applied) = both(&spans).expect("they have come");
    let met = chain(&spans, &accepted).into_iter();
    assert_eq!(met.map(|span| span.name.as_str()).collect::<Vec<_>>(), layers);
    assert_eq!(applied.name, applying);
    assert_ne!(applied.trace_id, accepted.trace_id);
    assert_eq!(applied.links.len(), 1, "{applied:?}");
    assert_eq!(applied.links[0].trace_id, accepted.trace_id);
    let named = chain(&spans, &accepted).into_iter().map(|span| &span.span_id);
    assert!(named.into_iter().any(|span| *span == applied.links[0].span_id), "{applied:?}");
    assert!(program.terminate().await.success());
    let said = format!("{:?}", collector.everything.borrow());
    assert!(!said.contains(SECRET), "{said}");
    chain(&spans, &applied).into_iter().map(|span| span.name.clone()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_applies_a_write_is_linked_to_the_request_of_which_it_was_accepted() {
    let applied = is_linked(6, &["POST /write", "WriteBuffer write"], "SingleFlight write").await;
    assert!(applied.ends_with(&["ConcurrencyLimit write".into(), "Coalesce write".into()]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_projects_a_write_is_linked_to_the_request_that_wrote_it() {
    let layers = ["POST /write", "Cqrs write", "Coalesce write"];
    assert_eq!(is_linked(7, &layers, "projection apply").await, ["projection apply"]);
}

/// Requests until so many spans wait that some are lost.
async fn until_spans_are_lost(program: &Program) {
    let until = tokio::time::Instant::now() + 2 * PATIENCE;
    while program.figure("terrace_traces_dropped_total").await == 0 {
        assert!(tokio::time::Instant::now() < until, "no span is lost");
        for _ in 0..100 {
            assert_eq!(program.secretly_read(&[]).await, 200);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_delays_neither_requests_nor_the_end() {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let environment = [("TERRACE_TRACES_ENDPOINT", &*url), ("ENABLE_METRICS", "true")];
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve_with(1, &stores, &[], &environment).await;
    assert_eq!(program.secretly_read(&[]).await, 200);
    // From here on the thread of traces waits for an answer that does not come.
    let (mut taken, _) = listener.accept().await.expect("a connection");
    posted(&mut taken).await;
    until_spans_are_lost(&program).await;
    let ended = tokio::time::timeout(DRAIN, program.terminate()).await;
    assert!(ended.expect("it ends as without a collector").success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_collector_at_the_address_requests_and_the_end_are_as_ever() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("http://127.0.0.1:{}", free_port());
    let environment = [("TERRACE_TRACES_ENDPOINT", &*url), ("ENABLE_METRICS", "true")];
    let stores = Stores::Embedded(directory.path());
    let program = Program::serve_with(1, &stores, &[], &environment).await;
    until_spans_are_lost(&program).await;
    assert_eq!(program.health().await, "healthy");
    let ended = tokio::time::timeout(DRAIN, program.terminate()).await;
    assert!(ended.expect("it ends as without a collector").success());
}

#[tokio::test]
async fn an_address_that_is_no_url_is_refused_without_its_password() {
    let mut command = terrace(&["serve", "1"]);
    command.env("TERRACE_TRACES_ENDPOINT", "grpc://me:secret@collector:4317");
    let output = command.output().await.expect("it runs");
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && !error.contains("secret"), "{error}");
    assert!(error.contains("traces.endpoint") && error.contains("http://host:4318"), "{error}");
}
