//! Requests that read.

use super::{Generator, Step};

impl Generator {
    pub(super) fn get(&mut self) -> Step {
        let (index, kind, name) = self.target();
        let mut step = self.begin("GET", index, name);
        if kind.status && self.dice.chance(20) {
            step.subresource = "status";
        }
        step
    }

    pub(super) fn list(&mut self) -> Step {
        let (index, kind) = self.kind();
        let mut step = self.begin("GET", index, "");
        if self.dice.chance(50) {
            let selectors = [
                "tier=a",
                "tier!=a",
                "tier in (a,b)",
                "tier notin (a)",
                "tier",
                "!tier",
                "tier=a,tier!=b",
                "tier==b",
                "example.com/more=x_Y.z",
                "empty=",
                "tier>3",
                "a b",
                "tier in a",
            ];
            let selector = *self.dice.pick(&selectors);
            step.ask("labelSelector", selector);
        }
        if self.dice.chance(30) {
            let selector = *self.dice.pick(kind.selectors);
            step.ask("fieldSelector", selector);
        }
        if self.dice.chance(50) {
            let limit = 1 + self.dice.below(2);
            step.ask("limit", &limit.to_string());
            if self.dice.chance(60) {
                step.ask("continue", &format!("{{continue {}}}", kind.kind));
            }
        } else if self.dice.chance(12) {
            let name = self.name();
            step.ask("resourceVersion", &format!("{{rv {}/{name}}}", kind.kind));
            step.ask("resourceVersionMatch", "Exact");
        }
        step
    }
}
