//! The seam between a request and its endpoint, where guards and observers stand.
//!
//! Every request passes the same chain: its id ([`App`](super::app::App)), then what a service adds, in
//! its order, then the endpoint, or the refusal of a request that has none. What one step has found out,
//! such as who asks, it leaves for the later ones in the extensions of the [`Call`]'s parts. A service
//! that adds nothing pays nothing.

use std::fmt;
use std::sync::Arc;

use terrace_core::{BoxFuture, Inspection, Result};

use super::call::Call;
use super::endpoint::{Access, Class, Endpoint};
use super::face::{Face, Whole};
use super::reply::Answer;
use super::routes::{Found, Route};

/// One step of the chain.
pub(crate) trait Middleware: fmt::Debug + Send + Sync + 'static {
    /// Answers the request, or lets `next` do it and looks at what came of it.
    fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer>;

    /// Hears of all routes, once and before the first request.
    fn learn(&self, _routes: &[Route]) {}

    /// Adds to the description of an endpoint what it asks and answers before it.
    fn describe(&self, endpoint: Endpoint) -> Endpoint {
        endpoint
    }

    /// What it serves itself.
    fn face(self: Arc<Self>) -> Option<Face> {
        None
    }

    /// What it says of itself; nothing for a step that only passes requests on.
    fn inspect(&self) -> BoxFuture<'_, Option<Inspection>> {
        Box::pin(async { None })
    }

    /// Ends what it has in the background.
    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async { Ok(()) })
    }
}

/// What stands before the endpoints of a service, the first step outermost.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    steps: Vec<Arc<dyn Middleware>>,
}

impl Guards {
    pub(crate) fn new(steps: Vec<Arc<dyn Middleware>>) -> Self {
        Self { steps }
    }

    /// Adds steps behind all others.
    pub fn append(&mut self, others: Self) {
        self.steps.extend(others.steps);
    }

    /// Tells them all routes.
    pub(crate) fn learn(&self, routes: &[Route]) {
        self.steps.iter().for_each(|step| step.learn(routes));
    }

    /// An endpoint, with what they ask and answer before it.
    pub(crate) fn describe(&self, endpoint: Endpoint) -> Endpoint {
        self.steps.iter().fold(endpoint, |endpoint, step| step.describe(endpoint))
    }

    /// What they serve themselves.
    pub fn faces(&self) -> impl Iterator<Item = Face> {
        self.steps.iter().filter_map(|step| Arc::clone(step).face())
    }

    /// What is behind them, with what they say of themselves.
    pub fn before(&self, whole: Arc<dyn Whole>) -> Arc<dyn Whole> {
        match self.steps.is_empty() {
            true => whole,
            false => Arc::new(Guarded { guards: self.clone(), whole }),
        }
    }
}

#[derive(Debug)]
struct Guarded {
    guards: Guards,
    whole: Arc<dyn Whole>,
}

impl Whole for Guarded {
    fn inspect(&self) -> BoxFuture<'_, Inspection> {
        Box::pin(async {
            let mut tree = Inspection::new("guards");
            for step in &self.guards.steps {
                if let Some(part) = step.inspect().await {
                    tree = tree.needs(part);
                }
            }
            tree.needs(self.whole.inspect().await)
        })
    }

    fn close(&self) -> BoxFuture<'_, Result<()>> {
        Box::pin(async {
            for step in &self.guards.steps {
                step.close().await?;
            }
            self.whole.close().await
        })
    }
}

/// What is left of the chain.
pub(crate) struct Next<'a> {
    rest: &'a [Arc<dyn Middleware>],
    found: Found<'a>,
}

impl<'a> Next<'a> {
    pub(crate) fn new(guards: &'a Guards, found: Found<'a>) -> Self {
        Self { rest: &guards.steps, found }
    }

    /// The place of the request's route among those that the steps were told of.
    pub(crate) fn route(&self) -> usize {
        self.found.route
    }

    /// Who may call the endpoint.
    pub(crate) fn access(&self) -> Access {
        self.found.access
    }

    /// What the endpoint is to the databases.
    pub(crate) fn class(&self) -> Class {
        self.found.class
    }

    /// Goes on with the next step, or with the endpoint.
    pub(crate) fn run(self, call: &'a mut Call) -> BoxFuture<'a, Answer> {
        match (self.rest.split_first(), self.found) {
            (Some((first, rest)), found) => first.handle(call, Self { rest, found }),
            (None, Found { handler: Ok(handler), .. }) => handler.handle(call),
            (None, Found { handler: Err(problem), .. }) => Box::pin(async { Err(problem) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use hyper::Request;
    use terrace_core::{MemoryStore, Runtime, Store};

    use super::*;
    use crate::http::app::App;
    use crate::http::problem::{Kind, Problem};
    use crate::http::{Documents, Face, Limits, Records, Service, documents};

    type Log = Arc<Mutex<Vec<String>>>;

    /// What a step has found out.
    #[derive(Clone, Debug)]
    struct Principal(&'static str);

    /// Notes when it is passed; refuses in place of going on when it is told to.
    #[derive(Debug)]
    struct Step {
        name: &'static str,
        log: Log,
        refuses: bool,
    }

    impl Step {
        fn note(&self, text: String) {
            self.log.lock().unwrap_or_else(PoisonError::into_inner).push(text);
        }
    }

    impl Middleware for Step {
        fn handle<'a>(&'a self, call: &'a mut Call, next: Next<'a>) -> BoxFuture<'a, Answer> {
            Box::pin(async move {
                let by = call.parts.extensions.insert(Principal(self.name));
                self.note(format!("{} after {:?}", self.name, by.map(|by| by.0)));
                if self.refuses {
                    return Err(Problem::new(Kind::Unavailable, "not now"));
                }
                let answer = next.run(call).await;
                let status = answer.as_ref().map(|reply| reply.status().as_u16()).ok();
                self.note(format!("{} saw {status:?}", self.name));
                answer
            })
        }
    }

    async fn passed(path: &str, refuses: bool) -> (Vec<String>, Option<u16>) {
        let log = Log::default();
        let step = |name, refuses| -> Arc<dyn Middleware> {
            Arc::new(Step { name, log: Arc::clone(&log), refuses })
        };
        let store: Arc<dyn Store> = Arc::new(MemoryStore::default());
        let documents = Documents::of(&documents::L0, Records::of(Arc::clone(&store)));
        let service = Service {
            name: "0-single-db",
            faces: vec![Face::Documents(Arc::new(documents))],
            whole: Arc::new(store),
            guards: Guards::new(vec![step("first", false), step("second", refuses)]),
            limits: Limits::default(),
            tls: None,
            runtime: Runtime::system(),
        };
        let app = Arc::new(App::new(service));
        let (parts, ()) =
            Request::get(path).header("host", "a").body(()).expect("a request").into_parts();
        let mut call = Call::new(&app, parts, None, None);
        let answer = app.run(&mut call).await;
        let log = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = |answer: Answer| match answer {
            Ok(reply) => Some(reply.status().as_u16()),
            Err(problem) if problem.status() == 404 => Some(404),
            Err(_) => None,
        };
        (log, status(answer))
    }

    #[tokio::test]
    async fn steps_are_passed_in_order_and_see_the_answer_on_the_way_back() {
        let (log, status) = passed("/read/a", false).await;
        assert_eq!(status, Some(200));
        assert_eq!(
            log,
            [
                "first after None",
                "second after Some(\"first\")",
                "second saw Some(200)",
                "first saw Some(200)",
            ]
        );
    }

    #[tokio::test]
    async fn what_a_step_refuses_does_not_reach_the_endpoint() {
        let (log, status) = passed("/read/a", true).await;
        assert_eq!(status, None);
        assert_eq!(log, ["first after None", "second after Some(\"first\")", "first saw None"]);
    }

    #[tokio::test]
    async fn a_request_without_an_endpoint_passes_them_too() {
        let (log, status) = passed("/nothing", false).await;
        assert_eq!((log.len(), status), (4, Some(404)), "{log:?}");
        let (log, status) = passed("/nothing", true).await;
        assert_eq!((log.len(), status), (3, None), "{log:?}");
    }
}
