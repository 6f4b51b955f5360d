//! `terrace up` and `terrace serve`: bind, build, serve, drain.

mod announce;
mod drain;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use terrace_core::{BoxFuture, Runtime, Status, Task};
use tokio::net::TcpListener;
use tokio::sync::watch;

use super::canary::CanaryPlan;
use super::live_page::{self, LivePage};
use super::signals::AskedBy;
use super::{Failure, logging, signals};
use crate::access::ApiKey;
use crate::config::{Config, Loaded, Mode, millis};
use crate::http::{Face, Guards, Limits, PairFiles, Service, Tls, Whole, serve as serve_http};
use crate::levels::{Engines, Guarding, Level, Servers, Side, Stack, guards, is_measured};
use crate::live::Watched;
use crate::traces;

/// How often a level's health is looked at for the log.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// Serves several levels; each has a schema and a cache namespace of its own.
pub(super) fn up(levels: Vec<&'static Level>, loaded: Loaded) -> Result<(), Failure> {
    let base = loaded.config.server.port_base;
    let mut plan: Vec<_> =
        levels.into_iter().map(|level| (level, base + u16::from(level.number))).collect();
    plan.sort_by_key(|(level, _)| level.number);
    plan.dedup_by_key(|(level, _)| level.number);
    run(plan, None, loaded, true)
}

/// Serves one level, in the default schema of its database.
pub(super) fn serve(
    level: &'static Level,
    port: Option<u16>,
    canary: Option<CanaryPlan>,
    loaded: Loaded,
) -> Result<(), Failure> {
    let port = port.unwrap_or(loaded.config.server.port_base + u16::from(level.number));
    run(vec![(level, port)], canary, loaded, false)
}

fn run(
    plan: Vec<(&'static Level, u16)>,
    canary: Option<CanaryPlan>,
    loaded: Loaded,
    up: bool,
) -> Result<(), Failure> {
    let mode = loaded.config.mode()?;
    logging::start(&loaded)?;
    traces::start(&loaded.config.traces).map_err(|error| fatal(&error))?;
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(&loaded.config))
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("threads cannot be started: {error}")))?;
    let config = Arc::new(loaded.config);
    // A private server is used by every level that ever runs here, whichever command starts it.
    let shared = up || mode == Mode::Local;
    let outcome = tokio.block_on(async {
        let (stop, by_supervisor) = stop_signal()?;
        let runtime = traces::runtime();
        let tls = tls(&config, &runtime)?;
        let session =
            Session { config, mode, up, shared, canary, runtime, tls, stop, by_supervisor };
        session.run(plan).await
    });
    // What is still running by now was given its time to end.
    tokio.shutdown_timeout(Duration::from_millis(200));
    traces::end();
    outcome
}

/// How many threads serve requests. The engines need a core, too, and a thread more than there are
/// cores to run it costs more in switching than it brings.
fn workers(config: &Config) -> usize {
    match config.server.worker_threads {
        0 => std::thread::available_parallelism().map_or(1, |cores| cores.get() - 1).max(1),
        chosen => chosen,
    }
}

/// Runs the flusher of level 6 until a stop is asked for.
pub(super) fn flush(loaded: Loaded) -> Result<(), Failure> {
    let mode = loaded.config.mode()?;
    logging::start(&loaded)?;
    with_engines(loaded.config, mode, |engines, stop| {
        Box::pin(super::flush::until_stopped(engines, stop))
    })
}

/// Runs something on the engines of level 6, and ends them after it.
pub(super) fn with_engines(
    config: Config,
    mode: Mode,
    work: impl FnOnce(Engines, watch::Receiver<bool>) -> BoxFuture<'static, Result<(), Failure>>,
) -> Result<(), Failure> {
    let tokio = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(&config))
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("threads cannot be started: {error}")))?;
    let config = Arc::new(config);
    let outcome = tokio.block_on(async {
        let (stop, _) = stop_signal()?;
        let servers = Servers::start(&config, mode, true).await.map_err(|error| fatal(&error))?;
        let (shared, runtime) = (mode == Mode::Local, Runtime::system());
        let engines = Engines::new(6, shared, config, &servers, runtime);
        let outcome = work(engines, stop).await;
        servers.stop().await;
        outcome
    });
    tokio.shutdown_timeout(Duration::from_millis(200));
    outcome
}

/// Runs work that needs no engines of a level.
pub(super) fn block_on(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let tokio = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let tokio =
        tokio.map_err(|error| Failure::failed(format!("threads cannot be started: {error}")))?;
    tokio.block_on(work)
}

/// One run of the program.
struct Session {
    config: Arc<Config>,
    mode: Mode,
    up: bool,
    shared: bool,
    canary: Option<CanaryPlan>,
    runtime: Runtime,
    /// The certificate, where connections are over TLS.
    tls: Option<Tls>,
    stop: watch::Receiver<bool>,
    /// Whether it was asked for by a supervisor, whose load balancers have yet to hear of it.
    by_supervisor: Arc<AtomicBool>,
}

/// A level with its sockets.
struct Bound {
    level: &'static Level,
    listener: TcpListener,
    /// For `/metrics` alone.
    metrics: Option<TcpListener>,
}

/// A level with its stack and its port.
struct Running {
    level: &'static Level,
    address: SocketAddr,
    service: Service,
    /// Whether its requests need a key, and the first key of the installation.
    keyed: (bool, Option<ApiKey>),
    servers: Vec<Task>,
    /// Tells in the log how the level is.
    watch: Task,
}

impl Running {
    /// Whether it keeps records, and so can be tried with one.
    fn has_records(&self) -> bool {
        self.service.faces.iter().any(|face| matches!(face, Face::Records(_)))
    }
}

impl Session {
    async fn run(mut self, plan: Vec<(&'static Level, u16)>) -> Result<(), Failure> {
        // Ports first: a mistake there shows before any store is touched.
        let bound = self.bind(plan).await?;
        let page = live_page::bind(&self.config, self.up)?;
        let (config, mode) = (Arc::clone(&self.config), self.mode);
        let canary = self.canary.as_ref().is_some_and(|plan| plan.needs_cache_of(&config, mode));
        let cached = canary || bound.iter().any(|one| one.level.uses_cache(&config));
        let servers = match self.unless_stopped(Servers::start(&config, mode, cached)).await {
            None => return Ok(()),
            Some(started) => started.map_err(|error| fatal(&error))?,
        };
        let mut outcome = match &mut self.canary {
            Some(plan) => plan.start(&config, mode).await,
            None => Ok(()),
        };
        if outcome.is_ok() {
            outcome = self.serve_all(bound, page, &servers).await;
        }
        servers.stop().await;
        if let Some(plan) = &self.canary {
            plan.stop().await;
        }
        outcome
    }

    async fn serve_all(
        &mut self,
        bound: Vec<Bound>,
        page: Option<TcpListener>,
        servers: &Servers,
    ) -> Result<(), Failure> {
        let mut running = Vec::new();
        let mut outcome = Ok(());
        for one in bound {
            match self.start(one, servers).await {
                Ok(Some(one)) => running.push(one),
                Ok(None) => break,
                Err(failure) => {
                    outcome = Err(failure);
                    break;
                }
            }
        }
        if outcome.is_ok() && !*self.stop.borrow() {
            let page = page.map(|page| self.serve_page(page, &running, servers)).transpose()?;
            self.announce(&running, page.as_ref());
            // The sender has told before it is gone.
            let _ = self.stop.wait_for(|stop| *stop).await;
            let longest = running.iter().map(|one| self.drain_delay(one.level)).max();
            match longest.unwrap_or_default() {
                Duration::ZERO => tracing::info!("stopping: requests in flight are finished first"),
                delay => tracing::info!(
                    delay_ms = delay.as_millis(),
                    "stopping: requests are served for a while, until load balancers know"
                ),
            }
            if let Some(page) = page {
                page.end().await;
            }
        }
        drain::drain(running, outcome.is_err()).await;
        outcome
    }

    /// Builds a level's stack and serves it; `None` when a stop came first.
    async fn start(
        &mut self,
        Bound { level, listener, metrics }: Bound,
        servers: &Servers,
    ) -> Result<Option<Running>, Failure> {
        // Of work in the background that fails, each level tells its own.
        let runtime = self.runtime.apart();
        let config = Arc::clone(&self.config);
        let engines = Engines::new(level.number, self.shared, config, servers, runtime.clone());
        let Some(built) = self.unless_stopped((level.build)(&engines)).await else {
            return Ok(None);
        };
        let stack = built.map_err(|error| {
            Failure::failed(format!("level {}: {}", level.number, fatal(&error).text))
        })?;
        let address = listener
            .local_addr()
            .map_err(|error| Failure::failed(format!("a socket has no address: {error}")))?;
        let baseline = Side { level, engines: &engines, stack: &stack };
        let guarding = self.unless_stopped(self.guards(baseline, servers, &runtime)).await;
        let Some(guarding) = guarding else { return Ok(None) };
        let Guarding { guards, asks_for_keys, first_key } = guarding?;
        let keyed = (asks_for_keys, first_key);
        let Stack { mut faces, whole } = stack;
        let whole = guards.before(whole);
        let whole = match &self.tls {
            Some(tls) => tls.before(whole),
            None => whole,
        };
        faces.extend(guards.faces());
        let service = Service {
            name: level.name,
            faces,
            whole: Arc::clone(&whole),
            guards,
            limits: limits(&self.config),
            tls: self.tls.clone(),
            runtime: runtime.clone(),
        };
        let apart = metrics.map(|listener| {
            let faces = service.faces.iter().filter(|face| matches!(face, Face::Metrics(_)));
            let faces = faces.cloned().collect();
            self.serve(
                level,
                listener,
                Service { faces, guards: Guards::default(), ..service.clone() },
            )
        });
        let main = self.serve(level, listener, service.clone());
        let servers = apart.into_iter().chain([main]).collect();
        let (watched, clock) = (whole, runtime.clone());
        let watch = runtime.keep("health watch", move || {
            watch_health(level.number, Arc::clone(&watched), clock.clone())
        });
        Ok(Some(Running { level, address, service, keyed, servers, watch }))
    }

    /// The guards of a level, and behind them the one before its canary.
    async fn guards(
        &self,
        baseline: Side<'_>,
        servers: &Servers,
        runtime: &Runtime,
    ) -> Result<Guarding, Failure> {
        // First: it may be refused, and a first key is shown once.
        let canary = match &self.canary {
            Some(plan) => plan.build(baseline, servers, runtime).await?,
            None => Guards::default(),
        };
        let all = guards(baseline.level, baseline.engines).await;
        let mut all = all.map_err(|error| fatal(&error))?;
        all.guards.append(canary);
        Ok(all)
    }

    /// Serves until a stop is asked for.
    fn serve(&self, level: &Level, listener: TcpListener, service: Service) -> Task {
        let (mut stop, by_supervisor) = (self.stop.clone(), Arc::clone(&self.by_supervisor));
        let delay = drain_delay(&self.config, level);
        service.runtime.clone().spawn("http", async move {
            let stopped = async move {
                let _ = stop.wait_for(|stop| *stop).await;
                if by_supervisor.load(Ordering::Relaxed) { delay } else { Duration::ZERO }
            };
            serve_http(listener, service, stopped).await;
        })
    }

    /// Binds the ports of all levels, and `metrics.port` for the one that is measured.
    async fn bind(&self, plan: Vec<(&'static Level, u16)>) -> Result<Vec<Bound>, Failure> {
        let config = &self.config;
        let port = config.metrics.port;
        let measured = plan.iter().filter(|(level, _)| is_measured(level, config)).count();
        if port != 0 && measured > 1 {
            return Err(Failure::failed(format!(
                "metrics.port is one port, and {measured} levels are measured; leave it out, as each of \
                 them has /metrics on its own port, or serve one level"
            )));
        }
        let mut bound = Vec::new();
        for (level, level_port) in plan {
            let what = format!("level {}", level.number);
            let listener = bind(config, level_port, &what, "--port-base 9000").await?;
            let metrics = match port != 0 && is_measured(level, config) {
                true => Some(bind(config, port, "metrics.port", "PROMETHEUS_PORT=9100").await?),
                false => None,
            };
            bound.push(Bound { level, listener, metrics });
        }
        Ok(bound)
    }

    /// How long a level goes on serving now that a stop is asked for.
    fn drain_delay(&self, level: &Level) -> Duration {
        match self.by_supervisor.load(Ordering::Relaxed) {
            true => drain_delay(&self.config, level),
            false => Duration::ZERO,
        }
    }

    /// What the work answers, or `None` when a stop is asked for first.
    async fn unless_stopped<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut stop = self.stop.clone();
        tokio::select! {
            answer = work => Some(answer),
            _ = stop.wait_for(|stop| *stop) => None,
        }
    }

    /// Serves the live page of these levels.
    fn serve_page(
        &self,
        listener: TcpListener,
        running: &[Running],
        servers: &Servers,
    ) -> Result<LivePage, Failure> {
        let watched = running.iter().map(|one| Watched {
            level: one.level,
            url: self.url(one.address),
            keyed: one.keyed.0,
            service: one.service.clone(),
        });
        LivePage::serve(listener, watched.collect(), servers, &self.runtime, self.stop.clone())
    }
}

async fn bind(
    config: &Config,
    port: u16,
    what: &str,
    instead: &str,
) -> Result<TcpListener, Failure> {
    let host = config.server.host.as_str();
    TcpListener::bind((host, port)).await.map_err(|error| {
        Failure::failed(match error.kind() {
            std::io::ErrorKind::AddrInUse => format!(
                "port {port} ({what}) is in use; stop the program that has it, or choose another, such \
                 as {instead}"
            ),
            std::io::ErrorKind::PermissionDenied => format!(
                "port {port} ({what}) is not allowed to this user; choose one above 1023, such as \
                 {instead}"
            ),
            _ => format!("{host}:{port} ({what}) cannot be bound: {error}; check --host"),
        })
    })
}

/// What stops a start, with its cause, for the person who started it.
pub(super) fn fatal(error: &terrace_core::Error) -> Failure {
    Failure::failed(match error.particulars() {
        none if none.is_empty() => error.message().to_owned(),
        why => format!("{} ({why})", error.message()),
    })
}

fn limits(config: &Config) -> Limits {
    let server = &config.server;
    Limits {
        connections: server.max_connections,
        body_bytes: server.max_body_bytes,
        request_time: millis(server.request_timeout_ms),
        drain_time: millis(server.drain_timeout_ms),
        ..Limits::default()
    }
}

/// The certificate of the settings, if there is one.
fn tls(config: &Config, runtime: &Runtime) -> Result<Option<Tls>, Failure> {
    match pair_files(config) {
        Some(files) => Tls::open(files, runtime).map(Some).map_err(|error| fatal(&error)),
        None => Ok(None),
    }
}

/// Where the certificate is, if there is one.
pub(super) fn pair_files(config: &Config) -> Option<PairFiles> {
    let tls = &config.tls;
    let files = PairFiles { certificate: (&tls.certificate).into(), key: (&tls.key).into() };
    tls.is_on().then_some(files)
}

/// One log line for each change of a level's health.
async fn watch_health(
    level: u8,
    whole: Arc<dyn Whole>,
    runtime: Runtime,
) -> terrace_core::Result<()> {
    let mut last = Status::Healthy;
    loop {
        // First a pause: what is not connected yet at the start is no change.
        runtime.sleep(WATCH_EVERY).await;
        let tree = whole.inspect().await;
        let why = tree.reason();
        if tree.status != last {
            match tree.status {
                Status::Healthy => tracing::info!(level, "healthy again"),
                status => tracing::warn!(level, %status, why, "level changed"),
            }
            last = tree.status;
        }
    }
}

/// Turns true when a stop is asked for; before that it is noted whether a supervisor asks.
pub(super) fn stop_signal() -> Result<(watch::Receiver<bool>, Arc<AtomicBool>), Failure> {
    let (sender, receiver) = watch::channel(false);
    let by_supervisor = Arc::<AtomicBool>::default();
    let note = Arc::clone(&by_supervisor);
    signals::listen(1, move |by| {
        note.store(by == AskedBy::Supervisor, Ordering::Relaxed);
        sender.send_replace(true);
    })?;
    Ok((receiver, by_supervisor))
}

/// How long a level goes on serving after a supervisor's signal, while `/readyz` says no.
fn drain_delay(config: &Config, level: &Level) -> Duration {
    match config.server.drain_delay_ms {
        0 if level.guarded => Duration::from_secs(5),
        chosen => millis(chosen),
    }
}
