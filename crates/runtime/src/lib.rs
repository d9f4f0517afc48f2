//! What every operator process needs: a client with deadlines, JSON logs, metrics and health over HTTP, a leader
//! Lease, waiting for its CRDs, one controller loop with per-object backoff, server-side apply, and events.
//!
//! An operator's `main` calls [`operator::run`]; everything else is used from its controllers.

pub mod apply;
pub mod backoff;
pub mod cache;
pub mod client;
pub mod events;
pub mod health;
pub mod leader;
pub mod metrics;
pub mod operator;
pub mod packed;
pub mod telemetry;

mod controller;
mod crds;
