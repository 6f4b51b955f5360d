//! What operators and tools ask: health, liveness, readiness, and the documentation.

mod health;
mod pages;

use super::documents::DocumentsFace;
use super::endpoint::Endpoint;

/// The rows of the table.
pub(crate) fn endpoints(face: Option<&'static DocumentsFace>) -> Vec<Endpoint> {
    let mut table = vec![health::health(face), health::livez(), health::readyz()];
    table.extend(pages::endpoints());
    table
}

/// The name under which the documentation lists these endpoints.
const GROUP: &str = "Operations";
