//! Changes that cannot be taken back by design, and why. Pure.

use super::change::{Back, Change};

/// Why a change that was accepted does not come back to what was before; none where it does.
pub fn why(change: &Change) -> Option<&'static str> {
    let brings = |at: &str| change.change.pointer(at).is_some_and(|value| !value.is_null());
    let patches = matches!(change.back, Back::Patch(_));
    match change.kind {
        "Database" if patches && brings("/spec/storage/size") => Some(
            "spec.storage.size: volumes grow and never shrink; only a growth not yet begun can be taken back",
        ),
        "Database"
            if patches && change.path == "metadata.annotations" && change.label.starts_with("restart") =>
        {
            Some("holdfast.dev/restart: a restart has happened, and status.handled says for which value")
        }
        "BackupSchedule" if patches && brings("/spec/immediate") => {
            Some("spec.immediate: the Backup that was made stays, a record")
        }
        "Restore" if patches && change.change.pointer("/spec/approve").is_some_and(|a| *a != false) => {
            Some("spec.approve: a restore in place replaces the data")
        }
        "Restore" if change.makes() && change.change["spec"]["approve"] != false => {
            Some("a restore brings about data, volumes and a history of its own")
        }
        _ => None,
    }
}

/// Whether a difference after the way back is what a change leaves behind by design.
pub fn leaves(change: &Change, difference: &str) -> bool {
    let touches = |at: &str| change.change.pointer(at).is_some();
    // The volumes of instances that were added stay when these go, as do those of all instances that are taken away.
    let volume = difference.starts_with("PersistentVolume") && difference.ends_with(" is new")
        || difference.starts_with("new: volume ");
    // What was archived stays in the store that it was archived to.
    let archive = difference.starts_with("new: store ");
    match change.kind {
        "Database" => touches("/spec/instances") && volume || touches("/spec/archive") && archive,
        // The database that archives there goes on in the other place, and comes back.
        "BackupStore" => touches("/spec/volume") && archive,
        _ => false,
    }
}

/// Whether what an operator made stays as somebody left it, by design: it may create Secrets, and neither read nor change
/// them.
pub fn left_alone(change: &Change) -> bool {
    change.back == Back::Itself && change.target.kind == "Secret"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::generate;

    #[test]
    fn only_what_cannot_shrink_or_unhappen_lasts() {
        let of = |kind| generate::of(kind).unwrap();
        let all: Vec<_> = of("Database").into_iter().filter(|c| why(c).is_some()).collect();
        assert!(all.iter().any(|c| c.path == "spec.storage.size" && c.label.starts_with("larger")));
        assert!(all.iter().all(|c| c.path.starts_with("spec.storage")
            || c.path.starts_with("metadata")
            || c.path == "spec.instances"));
        assert!(of("BackupStore").iter().all(|c| why(c).is_none()));
    }
}
