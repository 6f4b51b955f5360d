//! A server on a free port, and a client that sends exactly the bytes it is told to.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "clippy takes only test functions as tests"
)]

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value as Json;
use terrace::http::{
    ClearCache, Documents, Face, Guards, Limits, Queries, Records, Service, bind, documents, serve,
};
use terrace_core::read_model::{Activity, Counted, Row};
use terrace_core::{
    BoxFuture, Cache, Key, MemoryCache, MemoryCacheOptions, MemoryStore, Record, Result, Runtime,
    Store, Task, Timestamp, Value, Version,
};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

pub(super) struct Server {
    address: std::net::SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    ended: oneshot::Receiver<usize>,
    _task: Task,
}

/// Level 0 over memory.
pub(super) fn service(store: Arc<dyn Store>) -> Service {
    Service {
        name: "0-single-db",
        whole: Arc::new(Arc::clone(&store)),
        faces: faces(Documents::of(&documents::L0, Records::of(store))),
        guards: Guards::default(),
        limits: Limits::default(),
        tls: None,
        runtime: Runtime::system(),
    }
}

/// Both faces of records.
pub(super) fn faces(documents: Documents) -> Vec<Face> {
    let records = Face::Records(Arc::clone(&documents.records));
    let queries = documents.queries.clone().map(Face::Queries);
    [Face::Documents(Arc::new(documents)), records].into_iter().chain(queries).collect()
}

/// A query side that always answers the same.
#[derive(Debug)]
struct Fixed;

impl Queries for Fixed {
    fn read_count(&self, _: &Key) -> u64 {
        3
    }

    fn search<'a>(&'a self, words: &'a str, limit: usize) -> BoxFuture<'a, Result<Vec<Row>>> {
        let key = Key::new(format!("{words} {limit}")).unwrap();
        let (created_at, updated_at) = (Timestamp::UNIX_EPOCH, Timestamp::UNIX_EPOCH);
        let (value, version) = (Value::new("found").unwrap(), Version::new(1));
        let record = Some(Record { key, value, version, created_at, updated_at });
        let row = Row { record, version, reads: 3, writes: 4, parked: false };
        Box::pin(async move { Ok(vec![row]) })
    }

    fn top(&self, by: Counted, limit: usize) -> BoxFuture<'_, Result<Vec<Row>>> {
        self.search(if by == Counted::Reads { "reads" } else { "writes" }, limit)
    }

    fn activity(&self, bucket: Duration, _: usize) -> BoxFuture<'_, Result<Vec<Activity>>> {
        let buckets = vec![Activity { from: Timestamp::UNIX_EPOCH, writes: bucket.as_secs() }];
        Box::pin(async move { Ok(buckets) })
    }
}

impl Server {
    pub(super) fn start() -> Self {
        Self::over(Arc::new(MemoryStore::default()))
    }

    pub(super) fn over(store: Arc<dyn Store>) -> Self {
        Self::of(service(store))
    }

    pub(super) fn level(number: u8, name: &'static str, store: Arc<dyn Store>) -> Self {
        if number == 9 {
            return super::regions::World::new().server;
        }
        use documents::{L0, L1, L2, L3, L4, L5, L6, L7};
        let face = [&L0, &L1, &L2, &L3, &L4, &L5, &L6, &L7][usize::from(number)];
        let records = Records { queues: number == 6, ..Records::of(Arc::clone(&store)) };
        let queries = (number == 7).then(|| Arc::new(Fixed) as Arc<dyn Queries>);
        let near = MemoryCache::new(MemoryCacheOptions::default(), Runtime::system());
        let near: Arc<dyn ClearCache> = Arc::new(Arc::new(near) as Arc<dyn Cache>);
        let caches = if number == 5 { vec![near] } else { Vec::new() };
        let faces = faces(Documents { queries, caches, ..Documents::of(face, records) });
        Self::of(Service { name, faces, ..service(store) })
    }

    pub(super) fn limited(limits: Limits) -> Self {
        Self::of(Service { limits, ..service(Arc::new(MemoryStore::default())) })
    }

    pub(super) fn of(service: Service) -> Self {
        let listener = bind(([127, 0, 0, 1], 0).into()).unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let (end, ended) = oneshot::channel();
        let task = Runtime::system().spawn("server", async move {
            let cut = serve(listener, service, async {
                let _ = stopped.await;
                Duration::ZERO
            });
            let _ = end.send(cut.await);
        });
        Self { address, stop: Some(stop), ended, _task: task }
    }

    pub(super) fn address(&self) -> std::net::SocketAddr {
        self.address
    }

    pub(super) async fn connect(&self) -> Client {
        Client(BufReader::new(TcpStream::connect(self.address).await.unwrap()))
    }

    pub(super) async fn get(&self, path: &str) -> Reply {
        self.call("GET", path, &[], "").await
    }

    /// POST or PUT of a JSON body.
    pub(super) async fn send(&self, method: &str, path: &str, body: &Json) -> Reply {
        self.send_with(method, path, &[], body).await
    }

    pub(super) async fn send_with(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &Json,
    ) -> Reply {
        let headers = [headers, &[("content-type", "application/json")]].concat();
        self.call(method, path, &headers, &body.to_string()).await
    }

    pub(super) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> Reply {
        let mut client = self.connect().await;
        client.request(method, path, headers, body).await;
        client.reply_to(method).await
    }

    /// Tells the server to stop.
    pub(super) fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// How many connections it had to cut.
    pub(super) async fn ended(self) -> usize {
        self.ended.await.unwrap()
    }
}

pub(super) struct Client(BufReader<TcpStream>);

impl Client {
    pub(super) async fn write(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.get_mut().write_all(bytes.as_ref()).await.unwrap();
    }

    /// Closes its sending side, as programs do that send one request.
    pub(super) async fn ends_sending(&mut self) {
        self.0.get_mut().shutdown().await.unwrap();
    }

    pub(super) async fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) {
        let mut text = format!("{method} {path} HTTP/1.1\r\nhost: terrace\r\n");
        for (name, value) in headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !body.is_empty() {
            text += &format!("content-length: {}\r\n", body.len());
        }
        self.write(text + "\r\n" + body).await;
    }

    /// The answer to a request of this method; HEAD has no body.
    pub(super) async fn reply_to(&mut self, method: &str) -> Reply {
        let status = self.line().await;
        let status = status.split(' ').nth(1).expect("a status line").parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().await;
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_owned(), value.to_owned()));
        }
        let mut reply = Reply { status, headers, body: Vec::new() };
        let has_body = method != "HEAD" && status != 204 && status != 304;
        let length = reply.header("content-length").map_or(0, |text| text.parse().unwrap());
        reply.body.resize(if has_body { length } else { 0 }, 0);
        self.0.read_exact(&mut reply.body).await.unwrap();
        reply
    }

    /// Waits until the server has closed the connection; answers what came before.
    pub(super) async fn closed(&mut self) -> Vec<u8> {
        let mut rest = Vec::new();
        // A reset is a close, too.
        let _ = self.0.read_to_end(&mut rest).await;
        rest
    }

    async fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        line.trim_end().to_owned()
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    pub(super) body: Vec<u8>,
}

impl Reply {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn json(&self) -> Json {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("no JSON: {self:?}"))
    }

    /// The names of the fields in their order.
    pub(super) fn fields(&self) -> Vec<String> {
        let fields: Vec<(String, Json)> = in_order(self.text());
        fields.into_iter().map(|(name, _)| name).collect()
    }

    /// Checks that this is a whole problem document and answers its detail.
    #[track_caller]
    pub(super) fn problem(&self, status: u16, slug: &str) -> String {
        let body = self.json();
        assert_eq!(self.status, status, "{body}");
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        assert_eq!(body["type"], format!("/docs#{slug}"), "{body}");
        assert_eq!(body["status"], status);
        assert_eq!(body["request_id"], self.header("x-request-id").unwrap());
        assert_eq!(self.fields(), ["type", "title", "status", "detail", "request_id"]);
        body["detail"].as_str().unwrap().to_owned()
    }
}

/// The fields of an object in their order, which a map would lose.
fn in_order(text: &str) -> Vec<(String, Json)> {
    struct Fields(Vec<(String, Json)>);
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Fields;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
            let mut fields = Vec::new();
            while let Some(field) = map.next_entry()? {
                fields.push(field);
            }
            Ok(Fields(fields))
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    serde::Deserializer::deserialize_map(&mut reader, Visitor).unwrap().0
}

/// Short enough to wait for.
pub(super) const SOON: Duration = Duration::from_millis(150);
