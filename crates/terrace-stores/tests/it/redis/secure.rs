//! TLS: an authority of one's own, certificates of clients, and what is said when it does not come about.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use terrace_core::testkit::key;
use terrace_core::{
    Cache, Follower as _, Invalidations as _, Journal as _, Notice, Permits as _, Quota, Runtime,
    Status,
};
use terrace_lab::{RedisOptions, RedisServer};
use terrace_stores::{
    RedisCache, RedisCacheOptions, RedisJournal, RedisJournalOptions, RedisPermits,
    RedisPermitsOptions, RedisStream, RedisStreamOptions,
};

use super::{cache, fill, hit, invalidate, lease, live};

/// One who signs.
struct Authority(Issuer<'static, KeyPair>);

impl Authority {
    /// Its certificate is in `{name}.pem`.
    fn new(directory: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        std::fs::write(directory.join(format!("{name}.pem")), certificate.pem()).unwrap();
        Self(Issuer::new(params, key))
    }

    /// A certificate for a host until the end of a year, in `{file}.pem`, with its key in `{file}.key`.
    fn signs(&self, directory: &Path, file: &str, host: &str, until: i32) {
        let mut params = CertificateParams::new([host.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(until, 12, 31);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        std::fs::write(directory.join(format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(directory.join(format!("{file}.key")), key.serialize_pem()).unwrap();
    }
}

/// A server that speaks TLS on a second port, and wants certificates of its clients.
struct Secure {
    server: RedisServer,
    port: u16,
    directory: tempfile::TempDir,
    authority: Authority,
}

impl Secure {
    /// Its certificate is for this host, until the end of this year.
    async fn start(host: &str, until: i32) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path();
        std::fs::set_permissions(at, std::fs::Permissions::from_mode(0o755)).unwrap();
        let authority = Authority::new(at, "ca");
        authority.signs(at, "server", host, until);
        authority.signs(at, "client", "client", 4000);
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = |file: &str| at.join(file).to_str().unwrap().to_owned();
        let settings = [
            ("tls-port", port.to_string()),
            ("tls-cert-file", path("server.pem")),
            ("tls-key-file", path("server.key")),
            ("tls-ca-cert-file", path("ca.pem")),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let home = at.join("redis");
        let options = RedisOptions { settings, temporary: true, ..RedisOptions::new(home) };
        let server = RedisServer::start(options).await.unwrap();
        Self { server, port, directory, authority }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The URL with these files, named as parameter and file.
    fn url(&self, files: &[(&str, &str)]) -> String {
        let plain = self.server.url();
        let (login, _) = plain.split_once('@').unwrap();
        let login = login.replace("redis://", "rediss://");
        let file = |(name, file): &(&str, &str)| {
            format!("{name}={}", self.path().join(file).to_str().unwrap())
        };
        let files = files.iter().map(file).collect::<Vec<_>>().join("&");
        format!("{login}@127.0.0.1:{}/?{files}", self.port)
    }

    fn good_url(&self) -> String {
        self.url(&[("ca", "ca.pem"), ("cert", "client.pem"), ("key", "client.key")])
    }
}

fn options(url: String) -> RedisCacheOptions {
    let timeout = Duration::from_secs(5);
    RedisCacheOptions {
        command_timeout: timeout,
        connect_timeout: timeout,
        ..RedisCacheOptions::new(url)
    }
}

/// What a cache that cannot be used says of itself.
async fn says(url: String) -> String {
    let cache = cache(options(url)).await;
    let inspection = cache.inspect().await;
    assert_eq!(inspection.status, Status::Down);
    inspection.note.to_string()
}

#[tokio::test]
async fn every_part_speaks_tls() {
    let secure = Secure::start("127.0.0.1", 4000).await;
    let (url, runtime) = (secure.good_url(), Runtime::system());
    let cache = cache(RedisCacheOptions { announce: true, ..options(url.clone()) }).await;
    let mut notices = cache.subscribe();
    assert_eq!(notices.next().await, Some(Notice::Connected));
    let reader = lease(&cache, &key("a")).await;
    fill(&cache, &key("a"), reader, 1).await;
    assert_eq!(hit(&cache, &key("a")).await, Some(1));
    invalidate(&cache, &key("a"), 2).await;
    while !matches!(notices.next().await.expect("a notice"), Notice::Written { .. }) {}

    let journal = RedisJournalOptions::new(url.clone());
    let journal = RedisJournal::connect(journal, runtime.clone()).await.unwrap();
    assert_eq!(journal.inspect().await.status, Status::Healthy);
    let stream = RedisStreamOptions::new(url.clone(), "events");
    RedisStream::new(stream, runtime.clone()).unwrap().checkpoint().await.unwrap();
    let permits = RedisPermitsOptions {
        command_timeout: Duration::from_secs(5),
        ..RedisPermitsOptions::new(url, "limits")
    };
    let permits = RedisPermits::new(permits, runtime).unwrap();
    let quota = Quota { limit: 5, window: Duration::from_secs(60) }.into();
    assert_eq!(permits.take("client", &quota, 1.into()).await.unwrap().granted, 1);
}

#[tokio::test]
async fn who_is_not_trusted_is_told_why() {
    let secure = Secure::start("127.0.0.1", 4000).await;
    let at = secure.path();
    let foreign = Authority::new(at, "foreign");
    foreign.signs(at, "stranger", "client", 4000);
    secure.authority.signs(at, "past", "client", 2021);
    let pair = [("cert", "client.pem"), ("key", "client.key")];
    let with = |ca: &'static str| secure.url(&[[("ca", ca)].as_slice(), &pair].concat());
    let says_of = async |url: String, words: &str| {
        let note = says(url).await;
        assert!(note.contains(words), "{note}, not: {words}");
    };
    says_of(with("foreign.pem"), "authority that is not trusted; name the file").await;
    says_of(secure.url(&pair), "authority that is not trusted; name the file").await;
    says_of(secure.url(&[("ca", "ca.pem")]), "wants a certificate of its clients; name one").await;
    for file in ["stranger", "past"] {
        let (cert, key) = (format!("{file}.pem"), format!("{file}.key"));
        let url = secure.url(&[("ca", "ca.pem"), ("cert", &cert), ("key", &key)]);
        says_of(url, "does not accept the client's certificate; check").await;
    }
    // This port speaks TLS, and the URL does not.
    let plain =
        secure.server.url().replace(&secure.server.port().to_string(), &secure.port.to_string());
    says_of(plain, "reconnecting").await;
    for (host, until, words) in [
        ("127.0.0.1", 2021, "a certificate that has expired; renew it"),
        ("other.example", 4000, "for another name than the host in the URL; write a name"),
    ] {
        says_of(Secure::start(host, until).await.good_url(), words).await;
    }
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_at_the_start() {
    let secure = Secure::start("127.0.0.1", 4000).await;
    secure.authority.signs(secure.path(), "other", "client", 4000);
    for (files, words) in [
        ([("ca", "none.pem"), ("cert", "client.pem"), ("key", "client.key")], "ca cannot be read"),
        ([("ca", "ca.pem"), ("cert", "none.pem"), ("key", "client.key")], "cert of the Redis URL"),
        ([("ca", "ca.pem"), ("cert", "client.pem"), ("key", "none.key")], "key of the Redis URL"),
        ([("ca", "ca.pem"), ("cert", "client.pem"), ("key", "other.key")], "does not fit"),
    ] {
        let refused = RedisCache::connect(options(secure.url(&files)), Runtime::system()).await;
        let message = refused.expect_err(words).message().to_owned();
        assert!(message.contains(words), "{message}, not: {words}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_is_used_by_the_next_connection() {
    let secure = Secure::start("127.0.0.1", 4000).await;
    secure.authority.signs(secure.path(), "client", "client", 2021);
    let cache = cache(options(secure.good_url())).await;
    assert_eq!(cache.inspect().await.status, Status::Down);
    secure.authority.signs(secure.path(), "client", "client", 4000);
    live(&cache).await;
}
