//! The operators, killed at every write in every way, on an in-memory cluster.

pub mod agent;
pub mod branch;
pub mod families;
pub mod hostile;
pub mod operators;
pub mod plan;
pub mod run;
pub mod seeded;
pub mod slices;
pub mod workloads;
pub mod world;
