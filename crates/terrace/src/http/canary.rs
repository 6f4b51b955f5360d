//! A canary: another stack beside the one that is served, for some of the clients.
//!
//! [`Canary`] is the innermost guard: who asks is known by then, and what other guards refuse is nobody's
//! fault. Of each client it knows by the client's name alone which stack serves it ([`ClientShare`]), so all
//! requests of one client go to one stack. Only requests about records have that choice, and only where both
//! stacks have the endpoint under the same rights; all others are the baseline's.
//!
//! What became of the requests of both cohorts is compared ([`trial`]), and some reads of the baseline's clients
//! are repeated on both stacks ([`mirror`]). A canary that does worse is taken back: from then on the baseline
//! serves everybody, until somebody starts the process again. There is no promotion: a canary that does well
//! stays what it is.
//!
//! Whether two stacks may serve clients side by side is decided where they are built,
//! in [`levels`](crate::levels).

mod figures;
mod mirror;
mod share;
#[cfg(test)]
mod tests;
mod trial;

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hyper::{Method, StatusCode};
use terrace_core::{
    BoxFuture, Consistency, Inspection, Result, Runtime, Status, Store, Task, Unit,
};

use super::call::Call;
use super::client_address::TrustedProxies;
use super::client_name::{self, X_CLIENT_ID};
use super::endpoint::{Access, Endpoint, Handle, Needs};
use super::face::{Face, Whole};
use super::front_caches::for_the_client_alone;
use super::middleware::{Middleware, Next};
use super::operations::HealthFields;
use super::reply::Answer;
use super::routes::{Route, Routes};
use mirror::Mirror;
pub use share::ClientShare;
use trial::{Cohort, Kind, LOOK_EVERY, Trial};

/// How a canary is served.
#[derive(Clone, Debug)]
pub(crate) struct CanaryOptions {
    /// The canary's level, as on the wire.
    pub(crate) level: &'static str,
    /// Whom it serves.
    pub(crate) share: ClientShare,
    /// How fresh the answers of mirrored reads must be: what the levels promise, or, where the two stacks do not
    /// hear of each other's writes, what their databases have.
    pub(crate) consistency: Consistency,
    /// How long answers that differ are left before they are compared again: longer than either level may be
    /// behind by itself.
    pub(crate) pause: Duration,
    /// Whose word on clients' addresses is believed.
    pub(crate) proxies: TrustedProxies,
}

/// The guard before a stack with a canary beside it.
pub(crate) struct Canary {
    options: CanaryOptions,
    routes: Routes,
    whole: Arc<dyn Whole>,
    trial: Arc<Trial>,
    mirror: Arc<Mirror>,
    /// Of each route of the baseline what it is to the canary. Known before the first request.
    choices: OnceLock<Vec<Choice>>,
    tasks: Mutex<Vec<Task>>,
}

/// What a route of the baseline is to the canary.
#[derive(Clone, Copy, Debug)]
struct Choice {
    /// Whether it has it, too.
    has: bool,
    /// Whether it reads one record, under the key at its end.
    reads_one: bool,
}

/// Paths that read one record.
const READS_ONE: [&str; 4] =
    ["/v1/records/{key}", "/read/{key}", "/v1/documents/{key}", "/read/document/{key}"];

impl Canary {
    /// A canary with these faces, which are `whole`. Both stores are of what [`CanaryOptions`] says.
    pub(crate) fn start(
        stores: [Arc<dyn Store>; 2],
        faces: &[Face],
        whole: Arc<dyn Whole>,
        options: CanaryOptions,
        runtime: &Runtime,
    ) -> Self {
        let table = faces.iter().flat_map(|face| face.endpoints(&whole)).collect::<Vec<_>>();
        let CanaryOptions { consistency, pause, .. } = options;
        let mirror = Arc::new(Mirror::new(stores, consistency, pause, runtime.clone()));
        let trial = Arc::<Trial>::default();
        let mut tasks = Vec::new();
        let reads = Arc::clone(&mirror);
        tasks.push(runtime.keep("mirrored reads", move || {
            let reads = Arc::clone(&reads);
            async move { reads.go_on().await }
        }));
        // Who serves nobody is not taken back.
        if options.share != ClientShare::NONE {
            let all = (Arc::clone(&trial), Arc::clone(&mirror), runtime.clone());
            tasks.push(runtime.keep("canary", move || {
                let (trial, mirror, runtime) = all.clone();
                async move { watch(&trial, &mirror, &runtime).await }
            }));
        }
        let (tasks, choices) = (Mutex::new(tasks), OnceLock::new());
        Self { options, routes: Routes::new(&table), whole, trial, mirror, choices, tasks }
    }

    /// Whether the canary serves this client.
    fn serves(&self, call: &Call) -> bool {
        if self.options.share == ClientShare::NONE || self.trial.is_over() {
            return false;
        }
        let headers = &call.parts.headers;
        let client = match (&call.principal, headers.get(X_CLIENT_ID)) {
            (Some(principal), _) => client_name::by_principal(principal, headers),
            (None, Some(id)) => client_name::of_settings(id),
            (None, None) => client_name::by_address(call.peer, headers, &self.options.proxies),
        };
        self.options.share.has(&client)
    }

    /// The canary's endpoint. What the guards have admitted holds for it only where it asks for the same.
    fn endpoint(&self, call: &Call, access: Access) -> Option<&dyn Handle> {
        let found = self.routes.find(&call.parts.method, call.parts.uri.path());
        found.handler.ok().filter(|_| found.access == access)
    }

    /// Has the read of a baseline's client repeated.
    fn mirror(&self, call: &Call, answer: &Answer) {
        let has_been_read = match answer {
            Ok(reply) => !reply.status().is_server_error(),
            Err(problem) => problem.status() == StatusCode::NOT_FOUND,
        };
        if has_been_read
            && !self.trial.is_over()
            && self.mirror.takes_one()
            && let Ok(key) = call.key()
        {
            self.mirror.offer(key);
        }
    }

    /// What it adds to `/health`.
    pub(crate) fn health_fields() -> HealthFields {
        figures::HEALTH
    }

    /// The rows of the table.
    pub(crate) fn endpoints(whole: &Arc<dyn Whole>) -> Vec<Endpoint> {
        vec![figures::endpoint(whole)]
    }

    async fn look(&self) -> Inspection {
        let tree = Inspection::new("canary")
            .text("level", self.options.level)
            .fact("serving", self.options.share != ClientShare::NONE && !self.trial.is_over())
            .gauge("per_mille", self.per_mille().into(), Unit::Count);
        let tree = self.trial.show(self.mirror.show(tree));
        if let Some(reason) = tree.known("returned").map(ToString::to_string) {
            let note = format!(
                "the canary was taken back ({reason}), and the baseline serves all clients; start without \
                 it, or again when it is mended"
            );
            return tree.status(Status::Degraded, note);
        }
        // Its parts stay out of the tree, where those of the baseline are looked for.
        let of_canary = self.whole.inspect().await;
        match of_canary.status.tolerated() {
            Status::Healthy => tree,
            status => tree.status(status, format!("the canary: {}", of_canary.reason())),
        }
    }

    /// In a thousand clients, so many are served by it now.
    fn per_mille(&self) -> u16 {
        if self.trial.is_over() { 0 } else { self.options.share.per_mille() }
    }
}

/// Ends when the canary is taken back.
async fn watch(trial: &Trial, mirror: &Mirror, runtime: &Runtime) -> Result<()> {
    while !trial.is_over() {
        runtime.sleep(LOOK_EVERY).await;
        let (compared, differences) = mirror.found();
        trial.look(compared, differences);
    }
    Ok(())
}

impl fmt::Debug for Canary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Canary").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Middleware for Canary {
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
        let Needs::Scope(scope) = next.access().needs else { return next.run(call) };
        let choice = self.choices.get().and_then(|all| all.get(next.route())).copied();
        let (Some(Choice { has: true, reads_one }), Some(kind)) = (choice, Kind::of(scope)) else {
            return next.run(call);
        };
        let endpoint = match self.serves(call) {
            true => self.endpoint(call, next.access()),
            false => None,
        };
        Box::pin(async move {
            let cohort = if endpoint.is_some() { Cohort::Canary } else { Cohort::Baseline };
            let (runtime, trial) = (call.app.runtime.clone(), &*self.trial);
            let open = Open { trial, cohort, kind, begun: runtime.now(), runtime };
            let answer = match endpoint {
                Some(endpoint) => endpoint.handle(call).await.map(for_the_client_alone),
                None => next.run(call).await,
            };
            open.end(&answer);
            if reads_one && cohort == Cohort::Baseline {
                self.mirror(call, &answer);
            }
            answer
        })
    }

    fn learn(&self, routes: &[Route]) {
        let own = self.routes.all();
        let choices = routes.iter().map(|route| Choice {
            has: route.path.is_some() && own.contains(route),
            reads_one: route.method == Some(Method::GET)
                && route.path.is_some_and(|path| READS_ONE.contains(&path)),
        });
        let _ = self.choices.set(choices.collect());
    }

    fn face(self: Arc<Self>) -> Option<Face> {
        Some(Face::Canary)
    }

    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        Box::pin(async { Some(self.look().await) })
    }

    /// The baseline closes whatever becomes of the canary.
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        let tasks = std::mem::take(&mut *self.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        Box::pin(async {
            for task in tasks {
                task.stop().await;
            }
            if let Err(error) = self.whole.close().await {
                tracing::warn!(%error, "the stores of the canary did not close in order");
            }
            Ok(())
        })
    }
}

/// A request that is not answered yet.
struct Open<'a> {
    trial: &'a Trial,
    cohort: Cohort,
    kind: Kind,
    begun: Instant,
    runtime: Runtime,
}

impl Open<'_> {
    fn end(&self, answer: &Answer) {
        let status = match answer {
            Ok(reply) => reply.status(),
            Err(problem) => problem.status(),
        };
        self.note(status.is_server_error());
    }

    fn note(&self, failed: bool) {
        let took = self.runtime.now().saturating_duration_since(self.begun);
        self.trial.note(self.cohort, self.kind, failed, took);
    }
}

impl Drop for Open<'_> {
    /// A panic becomes a 500 further out.
    fn drop(&mut self) {
        if thread::panicking() {
            self.note(true);
        }
    }
}
