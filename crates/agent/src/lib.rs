//! The agent: PID 1 of a database pod, and the worker in all Jobs. One static binary.

pub mod entry;
pub mod fetch;
pub mod install;
pub mod instance;
pub mod memory;
pub mod sql;
pub mod state;
pub mod worker;
