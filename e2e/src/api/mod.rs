//! Tests that need an API server and nothing else: what it takes, what it refuses and in which words, who may do what.

use crate::{runner::Test, test};

mod accepted;
mod conformance;
mod permissions;
mod refused;
mod server;
mod updates;

/// Seconds for the comparisons: long, since more of them can be asked for.
const LONG: u64 = 7200;

/// All of them.
pub fn all() -> Vec<Test> {
    vec![
        test!(60, accepted::definitions),
        test!(60, accepted::defaults),
        test!(60, accepted::good_specs),
        test!(120, accepted::examples),
        test!(60, refused::bad_databases),
        test!(60, refused::bad_stores),
        test!(60, refused::bad_schedules),
        test!(60, refused::bad_backups_and_restores),
        test!(60, refused::unknown_fields),
        test!(60, updates::immutable_fields),
        test!(60, updates::shrinking),
        test!(60, permissions::database_operator),
        test!(60, permissions::backup_scheduler_operator),
        test!(60, permissions::restore_operator),
        test!(60, conformance::built_in_kinds_as_always),
        test!(120, conformance::custom_kinds_as_always),
    ]
}

/// The in-memory API server of the sweep, compared with the real one in ever new sequences.
pub fn comparisons() -> Vec<Test> {
    vec![test!(LONG, conformance::built_in_kinds), test!(LONG, conformance::custom_kinds)]
}
