//! Claims of volumes, also those in templates.

use super::{items, one_of};
use crate::{builtin::quantity, status::Fault};
use serde_json::{Value, json};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];

pub(super) fn claim(object: &Value, status: bool, found: &mut Vec<Fault>) {
    if !status {
        spec(&object["spec"], "spec", found);
    }
}

/// The spec of a claim.
pub(super) fn spec(spec: &Value, path: &str, found: &mut Vec<Fault>) {
    let modes = items(spec, "accessModes");
    let at = format!("{path}.accessModes");
    if modes.is_empty() {
        found.push(Fault::required(&at, "at least 1 access mode is required"));
    }
    for mode in modes {
        one_of(mode.as_str().unwrap_or_default(), &at, &MODES, found);
    }
    let at = format!("{path}.resources[storage]");
    match spec["resources"]["requests"]["storage"].as_str() {
        None => found.push(Fault::required(&at, "")),
        Some(amount) if quantity::is_positive(amount) => {}
        Some(amount) => found.push(Fault::invalid(&at, &json!(amount), "must be greater than zero")),
    }
    if let Some(mode) = spec["volumeMode"].as_str() {
        one_of(mode, &format!("{path}.volumeMode"), &["Block", "Filesystem"], found);
    }
}
