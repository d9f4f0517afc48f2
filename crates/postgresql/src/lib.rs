//! What is true of PostgreSQL, whoever runs it: positions in the WAL, names of its files, timelines, settings,
//! when a volume is full, and the decision who is primary. Pure: no clock, no file, no network.

pub mod disk;
pub mod failover;
pub mod history;
pub mod lsn;
pub mod settings;
pub mod wal;

pub use lsn::Lsn;
