//! Backups at rest: where things lie in a store, how they get there and back, what may go, and what a restore needs.
//!
//! | module | what it does | touches |
//! |---|---|---|
//! | [`layout`] | names of all objects | nothing |
//! | [`store`] | S3 buckets and volumes behind one type | network, files |
//! | [`wal`] | WAL files in and out | store, files |
//! | [`tarball`] | cuts a tar stream into whole archives | nothing |
//! | [`parts`] | compresses, hashes and uploads those archives, and reads them back | store |
//! | [`manifest`] | what a backup says of itself | nothing |
//! | [`owner`] | who may write to a history | store |
//! | [`catalogue`] | databases, histories and backups, from the store alone | store |
//! | [`retention`] | what may go | nothing |
//! | [`plan`] | what a restore starts from and whether it can reach its target | nothing |

pub mod catalogue;
pub mod layout;
pub mod manifest;
pub mod owner;
pub mod parts;
pub mod plan;
pub mod retention;
pub mod store;
pub mod tarball;
pub mod wal;

pub use layout::HistoryFolder;
pub use store::{Store, StoreError};
