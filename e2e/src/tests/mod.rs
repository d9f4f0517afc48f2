//! The end-to-end tests, one file a theme. Each runs alone and in any order.

use crate::{runner::Test, test};

mod archive;
mod bad_input;
mod changes;
mod classes;
mod clones;
mod deletion;
mod failover;
mod full_disk;
mod growth;
mod operators;
pub use operators::OPERATORS;
mod partition;
mod restore;
mod running;
mod schedule;
mod stores;
mod switchover;
mod volumes;
mod zones;

/// All tests; the long ones first, so that the last to end is a short one.
pub fn all() -> Vec<Test> {
    vec![
        test!(420, restore::restore_in_place_pitr),
        test!(420, restore::restore_new_database),
        test!(300, failover::failover_force_delete),
        test!(300, failover::failover_inside_a_record),
        test!(300, schedule::retention),
        test!(300, full_disk::full_disk),
        test!(300, growth::volume_growth),
        test!(300, zones::zonal_volumes),
        test!(300, clones::volume_clone),
        test!(300, failover::failover_pod_delete),
        test!(300, switchover::switchover),
        test!(300, partition::api_server_away),
        test!(360, deletion::delete_keeps_data),
        test!(300, volumes::empty_volume_never_leads),
        test!(300, volumes::volumes_fail),
        test!(300, changes::parameter_change),
        test!(300, changes::scale_up_down),
        test!(300, restore::restore_latest),
        test!(300, restore::restore_fails_rolls_back),
        test!(300, restore::restore_refused),
        test!(300, archive::archive_and_backup),
        test!(240, schedule::backup_schedule),
        test!(240, bad_input::bad_input),
        test!(300, volumes::slow_volume),
        test!(240, volumes::adopt_volumes),
        test!(240, volumes::initdb_once),
        test!(240, running::three_instances),
        test!(240, clones::clone_falls_back),
        test!(240, full_disk::disk_filled_at_once),
        test!(180, growth::growth_refused),
        test!(240, growth::growth_failed),
        test!(120, classes::claim_never_binds),
        test!(180, classes::access_modes),
        test!(180, classes::snapshots),
        test!(180, running::one_instance),
        test!(240, stores::store_volume),
        test!(240, stores::store_s3),
        test!(360, stores::store_errors),
        test!(60, operators::operators_alone),
    ]
}
