//! What changed between two statuses and is worth an event. Pure.

use crate::{plan::trouble::DISK_FULL, status::space};
use holdfast_core::{
    DatabaseStatus,
    conditions::{self, types},
    names,
};

/// Something worth an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// A person should look.
    pub warning: bool,
    /// CamelCase reason.
    pub reason: String,
    /// CamelCase action.
    pub action: &'static str,
    /// A sentence.
    pub note: String,
}

/// Whether another instance is primary than before.
pub fn failed_over(old: &DatabaseStatus, new: &DatabaseStatus) -> bool {
    matches!((&old.primary, &new.primary), (Some(old), Some(new)) if old != new)
}

/// What changed between two statuses and is worth telling.
pub fn news(old: &DatabaseStatus, new: &DatabaseStatus) -> Vec<News> {
    let mut news = Vec::new();
    let mut tell = |warning, reason: &str, action, note: String| {
        news.push(News { warning, reason: reason.into(), action, note });
    };
    if failed_over(old, new) {
        let name = |status: &DatabaseStatus| status.primary.clone().unwrap_or_default();
        let timeline = new.timeline.unwrap_or_default();
        let note =
            format!("{} is primary now, on timeline {timeline}; before it was {}", name(new), name(old));
        tell(false, "FailedOver", "Promote", note);
    }
    let handled = |status: &DatabaseStatus| status.handled.clone().unwrap_or_default();
    let (was, is) = (handled(old), handled(new));
    if let (Some(asked), Some(why)) = (&is.switchover, &is.switchover_refused)
        && (&was.switchover, &was.switchover_refused) != (&is.switchover, &is.switchover_refused)
    {
        let note = format!(
            "the switchover to {asked:?} was refused: {why}; ask again with another value of annotation {}, for example any@2",
            names::ANNOTATION_SWITCHOVER
        );
        tell(true, "SwitchoverRefused", "Switchover", note);
    }
    for member in &new.members {
        let before = old.members.iter().find(|m| m.name == member.name).and_then(|m| m.volume.as_ref());
        let Some(after) = &member.volume else { continue };
        if before.is_some_and(|before| before.stage == after.stage) {
            continue;
        }
        let reason = match after.stage.as_str() {
            space::LOW => "DiskLow",
            space::FULL => DISK_FULL,
            _ => continue,
        };
        let note = format!(
            "volume of {}: {} of {} are left, WAL takes {}; raise spec.storage.size, or free space",
            member.name, after.available.0, after.capacity.0, after.wal.0
        );
        tell(true, reason, "Watch", note);
    }
    for after in &new.conditions {
        let before = conditions::find(&old.conditions, &after.type_);
        let turned = |status: &str| after.status == status && before.is_none_or(|b| b.status != status);
        match after.type_.as_str() {
            types::STALLED => {
                let same = before.is_some_and(|b| b.status == "True" && b.reason == after.reason);
                if after.status == "True" && !same {
                    tell(true, &after.reason, "Reconcile", after.message.clone());
                }
            }
            types::QUIESCED if turned("True") => tell(false, "Quiesced", "Stop", after.message.clone()),
            types::READY if turned("True") => tell(false, &after.reason, "Reconcile", after.message.clone()),
            types::AVAILABLE if turned("False") && before.is_some_and(|b| b.status == "True") => {
                tell(true, &after.reason, "Serve", format!("writes are not accepted: {}", after.message));
            }
            types::ARCHIVING if turned("False") && after.reason != "NotConfigured" => {
                tell(true, &after.reason, "Archive", after.message.clone());
            }
            _ => {}
        }
    }
    news
}
