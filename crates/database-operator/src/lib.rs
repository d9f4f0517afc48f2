//! The database operator: turns a `Database` into a StatefulSet, Services, Secrets, access rules and volumes, and says in
//! its status how the database is. It decides nothing about who is primary: the agents in the pods do, among themselves.
//!
//! A reconcile goes through five steps: [`observe`] reads (caches that watches keep fresh), [`validate`] parses the
//! Database once, [`plan`] decides (pure), [`apply`] writes, [`status`] says what is so (pure).

pub mod apply;
pub mod controller;
pub mod metrics;
pub mod observe;
pub mod packed;
pub mod plan;
pub mod status;
pub mod validate;

pub use controller::run;
pub use holdfast_core::quantity;
pub use validate::Settings;
