//! Requests that delete.

use super::{Generator, Step};
use serde_json::json;

impl Generator {
    pub(super) fn delete(&mut self) -> Step {
        let (index, kind, name) = self.target();
        let mut step = self.begin("DELETE", index, name);
        let place = format!("{}/{name}", kind.kind);
        let mut options = json!({});
        if self.dice.chance(60) {
            self.made.remove(&(index, name));
        }
        // Two controllers take their finalizers off a claim, in no particular order.
        let claim = kind.kind == "PersistentVolumeClaim";
        if self.dice.chance(50) && !claim {
            options["propagationPolicy"] =
                json!(*self.dice.pick(&["Background", "Background", "Foreground", "Orphan", "Odd"]));
        }
        if self.dice.chance(35) {
            let uid = self
                .dice
                .pick(&[format!("{{uid {place}}}"), format!("{{first-uid {place}}}"), "nobody-s".into()])
                .clone();
            options["preconditions"]["uid"] = uid.into();
        }
        if self.dice.chance(20) {
            let version =
                self.dice.pick(&[format!("{{rv {place}}}"), format!("{{first-rv {place}}}")]).clone();
            options["preconditions"]["resourceVersion"] = version.into();
        }
        if self.dice.chance(15) {
            options["gracePeriodSeconds"] = json!(*self.dice.pick(&[0, 5, 30]));
        }
        if self.dice.chance(8) {
            options["dryRun"] = json!(["All"]);
        }
        if options != json!({}) {
            options["apiVersion"] = "v1".into();
            options["kind"] = "DeleteOptions".into();
            step.body = options;
        }
        step
    }

    pub(super) fn collection(&mut self) -> Step {
        let (index, _) = self.kind();
        let mut step = self.begin("DELETE", index, "");
        if self.dice.chance(70) {
            let selector = *self.dice.pick(&["tier=a", "tier=b", "!tier"]);
            step.ask("labelSelector", selector);
        }
        if self.dice.chance(20) {
            step.ask("dryRun", "All");
        }
        step
    }
}
