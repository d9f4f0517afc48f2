//! Holdfast's custom resources and the contract between its operators.
//!
//! Everything here is data: no client, no clock, no I/O. An operator that wants to know what another one
//! means reads it from these types, from an object's status conditions and from its owner references;
//! there is no other channel between them.

pub mod conditions;
pub mod crd;
pub mod ids;
pub mod names;
pub mod operation;
pub mod pods;
pub mod quantity;
pub mod report;
pub mod wire;

pub use crd::{
    backup::{Backup, BackupSpec, BackupStatus},
    database::{Database, DatabaseSpec, DatabaseStatus},
    restore::{Restore, RestoreSpec, RestoreStatus},
    schedule::{BackupSchedule, BackupScheduleSpec, BackupScheduleStatus},
    store::{BackupStore, BackupStoreSpec, BackupStoreStatus},
};
