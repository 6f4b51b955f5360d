//! What operators and tools ask: health, liveness, readiness, and the documentation.

mod health;
mod pages;

use std::sync::Arc;

use terrace_core::Inspection;

use super::endpoint::Endpoint;
use super::face::Whole;
use super::schema::Field;

/// What a face adds to `/health`.
pub(crate) type HealthFields = &'static [Field<Inspection>];

/// The rows of the table.
pub(crate) fn endpoints(whole: Arc<dyn Whole>, fields: Vec<HealthFields>) -> Vec<Endpoint> {
    let operations = Arc::new(Operations { whole, fields });
    let mut table = vec![health::health(&operations), health::livez(), health::readyz(&operations)];
    table.extend(pages::endpoints());
    table
}

/// What is looked at.
#[derive(Debug)]
struct Operations {
    whole: Arc<dyn Whole>,
    fields: Vec<HealthFields>,
}

/// The name under which the documentation lists these endpoints.
pub(super) const GROUP: &str = "Operations";
