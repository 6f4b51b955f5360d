//! Finds the route of a request; knows every path and method of the table, and nothing else.

use std::sync::Arc;

use hyper::Method;
use hyper::header::{ALLOW, HeaderValue};

use super::endpoint::{Access, Endpoint, Handle};
use super::problem::{Kind, Problem};

/// The routes of one service.
#[derive(Debug)]
pub(crate) struct Routes(matchit::Router<Resource>);

/// One method of one path.
#[derive(Clone)]
pub(crate) struct Route {
    pub(crate) method: Method,
    pub(crate) access: Access,
    pub(crate) handler: Arc<dyn Handle>,
}

/// All methods of one path.
#[derive(Clone)]
struct Resource {
    routes: Vec<Route>,
    allow: HeaderValue,
}

impl Routes {
    /// The routes of this table. A path that ends in a key is also known with an empty key, so that
    /// the handler can say what is wrong with it.
    pub(crate) fn new(table: &[Endpoint]) -> Self {
        let mut router = matchit::Router::new();
        let mut paths = table.iter().map(|endpoint| endpoint.path).collect::<Vec<_>>();
        paths.dedup();
        for path in paths {
            let resource = Resource::of(table.iter().filter(|endpoint| endpoint.path == path));
            for path in [Some(path), without_parameter(path)].into_iter().flatten() {
                // The table is in the source; two rows for one path would be found by every test.
                let inserted = router.insert(path, resource.clone());
                debug_assert!(inserted.is_ok(), "{path}: {inserted:?}");
            }
        }
        Self(router)
    }

    /// The route of a method of a path.
    ///
    /// # Errors
    /// 404 for an unknown path, 405 with `Allow` for another method.
    pub(crate) fn find(&self, method: &Method, path: &str) -> Result<&Route, Problem> {
        let Ok(found) = self.0.at(path) else {
            return Err(Problem::new(
                Kind::UnknownPath,
                "there is nothing under this path; see /docs, and write a slash in a key as %2F",
            ));
        };
        let resource = found.value;
        // HEAD is GET without the body, which the HTTP library leaves out.
        let wanted = if method == Method::HEAD { &Method::GET } else { method };
        resource
            .routes
            .iter()
            .find(|route| route.method == wanted)
            .ok_or_else(|| resource.refusal())
    }
}

/// The path before its parameter, where it ends in one.
fn without_parameter(path: &'static str) -> Option<&'static str> {
    path.strip_suffix('}').and_then(|rest| rest.rsplit_once('{')).map(|(before, _)| before)
}

impl Resource {
    fn of<'a>(endpoints: impl Iterator<Item = &'a Endpoint>) -> Self {
        let routes = endpoints.map(|endpoint| Route {
            method: endpoint.method.clone(),
            access: endpoint.access,
            handler: Arc::clone(&endpoint.handler),
        });
        let routes = routes.collect::<Vec<_>>();
        let mut names = Vec::new();
        for Route { method, .. } in &routes {
            names.push(method.as_str());
            if method == Method::GET {
                names.push("HEAD");
            }
        }
        let allow = HeaderValue::from_str(&names.join(", "));
        Self { routes, allow: allow.unwrap_or(HeaderValue::from_static("")) }
    }

    fn refusal(&self) -> Problem {
        let allowed = self.allow.to_str().unwrap_or_default();
        let detail = format!("this path takes {allowed} only");
        Problem::new(Kind::MethodNotAllowed, detail).header(ALLOW, self.allow.clone())
    }
}

impl std::fmt::Debug for Resource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.allow)
    }
}
