//! Finds the handler of a request; knows every path and method of the table, and nothing else.

use std::fmt;
use std::sync::Arc;

use hyper::Method;
use hyper::header::{ALLOW, HeaderValue};

use super::endpoint::{Access, Class, Endpoint, Handle};
use super::problem::{Kind, Problem};

/// The routes of one service.
#[derive(Debug)]
pub(crate) struct Routes {
    router: matchit::Router<Resource>,
    /// First those of requests without an endpoint, one for each method and one for all other methods.
    all: Vec<Route>,
    others: usize,
}

/// One method of one path. There are as many as the table has, whatever clients ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// None: one that no path of the table has.
    pub(crate) method: Option<Method>,
    /// The path as it stands in the table, such as `/read/{key}`; none: no path of the table.
    pub(crate) path: Option<&'static str>,
}

/// What answers a request.
pub(crate) struct Found<'a> {
    /// The place of its route.
    pub(crate) route: usize,
    /// Who may call it.
    pub(crate) access: Access,
    /// What it is to the databases.
    pub(crate) class: Class,
    /// The endpoint, or why there is none.
    pub(crate) handler: Result<&'a dyn Handle, Problem>,
}

/// One method of a path.
#[derive(Clone)]
struct Served {
    method: Method,
    /// The place of its route.
    route: usize,
    access: Access,
    class: Class,
    handler: Arc<dyn Handle>,
}

/// All methods of one path.
#[derive(Clone)]
struct Resource {
    methods: Vec<Served>,
    allow: HeaderValue,
}

impl Routes {
    /// The routes of this table. A path that ends in a key is also known with an empty key, so that
    /// the handler can say what is wrong with it.
    pub(crate) fn new(table: &[Endpoint]) -> Self {
        let mut router = matchit::Router::new();
        let mut all = others(table);
        let others = all.len();
        let mut paths = table.iter().map(|endpoint| endpoint.path).collect::<Vec<_>>();
        paths.dedup();
        for path in paths {
            let endpoints = table.iter().filter(|endpoint| endpoint.path == path);
            let resource = Resource::of(endpoints, &mut all);
            for path in [Some(path), without_parameter(path)].into_iter().flatten() {
                // The table is in the source; two rows for one path would be found by every test.
                let inserted = router.insert(path, resource.clone());
                debug_assert!(inserted.is_ok(), "{path}: {inserted:?}");
            }
        }
        Self { router, all, others }
    }

    /// All routes, by their places.
    pub(crate) fn all(&self) -> &[Route] {
        &self.all
    }

    /// What answers a method of a path: its handler, 404 for an unknown path, 405 with `Allow` for
    /// another method.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Found<'_> {
        let Ok(found) = self.router.at(path) else {
            let detail =
                "there is nothing under this path; see /docs, and write a slash in a key as %2F";
            return self.refused(method, Problem::new(Kind::UnknownPath, detail));
        };
        let resource = found.value;
        match resource.methods.iter().find(|served| served.method == method) {
            Some(Served { route, access, class, handler, .. }) => {
                Found { route: *route, access: *access, class: *class, handler: Ok(&**handler) }
            }
            None => self.refused(method, resource.refusal()),
        }
    }

    /// What answers a request that has no endpoint.
    pub(crate) fn refused(&self, method: &Method, problem: Problem) -> Found<'_> {
        let (others, last) = (&self.all[..self.others], self.others - 1);
        let known = others.iter().position(|route| route.method.as_ref() == Some(method));
        let (route, access, class) = (known.unwrap_or(last), Access::OPEN, Class::Watch);
        Found { route, access, class, handler: Err(problem) }
    }
}

/// The routes of requests without an endpoint.
fn others(table: &[Endpoint]) -> Vec<Route> {
    let mut methods = vec![Some(Method::HEAD)];
    for endpoint in table {
        let method = Some(endpoint.method.clone());
        if !methods.contains(&method) {
            methods.push(method);
        }
    }
    methods.push(None);
    methods.into_iter().map(|method| Route { method, path: None }).collect()
}

/// The path before its parameter, where it ends in one.
fn without_parameter(path: &'static str) -> Option<&'static str> {
    path.strip_suffix('}').and_then(|rest| rest.rsplit_once('{')).map(|(before, _)| before)
}

impl Resource {
    /// The routes are added to all others.
    fn of<'a>(endpoints: impl Iterator<Item = &'a Endpoint>, all: &mut Vec<Route>) -> Self {
        let mut methods = Vec::new();
        for endpoint in endpoints {
            // HEAD is GET without the body, which the HTTP library leaves out.
            let head = (endpoint.method == Method::GET).then_some(Method::HEAD);
            for method in [Some(endpoint.method.clone()), head].into_iter().flatten() {
                methods.push(Served {
                    method: method.clone(),
                    route: all.len(),
                    access: endpoint.access,
                    class: endpoint.class(),
                    handler: Arc::clone(&endpoint.handler),
                });
                all.push(Route { method: Some(method), path: Some(endpoint.path) });
            }
        }
        let names = methods.iter().map(|served| served.method.as_str()).collect::<Vec<_>>();
        let allow = HeaderValue::from_str(&names.join(", "));
        Self { methods, allow: allow.unwrap_or(HeaderValue::from_static("")) }
    }

    fn refusal(&self) -> Problem {
        let allowed = self.allow.to_str().unwrap_or_default();
        let detail = format!("this path takes {allowed} only");
        Problem::new(Kind::MethodNotAllowed, detail).header(ALLOW, self.allow.clone())
    }
}

impl fmt::Debug for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.allow)
    }
}
