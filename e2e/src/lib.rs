//! The end-to-end harness: what a test needs to act like a user of a cluster, and to say clearly what it saw.
//!
//! Tests read Secrets and delete pods, as an administrator could; the operators under test cannot.

pub mod api;
pub mod bench;
pub mod client_pod;
pub mod cluster;
pub mod database;
pub mod dump;
pub mod namespace;
pub mod objects;
pub mod runner;
pub mod sql;
pub mod store;
pub mod tests;
pub mod wait;
pub mod writer;

/// Field manager of everything that tests apply.
pub const MANAGER: &str = "holdfast-e2e";
/// Namespace of the operators.
pub const SYSTEM: &str = "holdfast-system";
