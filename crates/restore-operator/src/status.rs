//! Conditions and status of a Restore. Only says; `apply` writes.

use holdfast_core::{
    Restore, RestoreStatus,
    conditions::{self, Truth, types},
    crd::restore::{Reached, RestorePlan},
};
use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

/// Every condition type of a Restore, in the order in which they are decided.
const ALL: [&str; 6] =
    [types::VALIDATED, types::RESTORED, types::SUCCEEDED, types::READY, types::ROLLED_BACK, types::STALLED];

/// Whether nothing will be written about this Restore any more.
pub fn finished(restore: &Restore) -> bool {
    let said = restore.status.as_ref().map(|s| s.conditions.as_slice()).unwrap_or_default();
    let holds = restore.metadata.finalizers.iter().flatten().any(|f| f == holdfast_core::names::FINALIZER);
    let ended = conditions::is_true(said, types::SUCCEEDED) || conditions::is_false(said, types::SUCCEEDED);
    ended && !holds
}

/// What is to be said of a Restore. What is not mentioned stays as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Say {
    phase: &'static str,
    conditions: Vec<(&'static str, Truth, String, String)>,
    plan: Option<RestorePlan>,
    reached: Option<Reached>,
    previous_data_set: Option<String>,
    ended: bool,
    idle: bool,
}

impl Say {
    /// Work goes on: what is waited for belongs to `condition`.
    pub fn working(
        phase: &'static str,
        condition: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self { phase, ..Self::default() }
            .and(condition, Truth::Unknown, reason, message.clone())
            .and(types::READY, Truth::Unknown, reason, message)
            .and(types::STALLED, Truth::False, "Progressing", "")
    }

    /// Something is missing that this operator cannot bring; it goes on by itself when it comes.
    pub fn blocked(
        phase: &'static str,
        condition: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self { phase, ..Self::default() }
            .and(condition, Truth::Unknown, reason, message.clone())
            .and(types::READY, Truth::False, reason, message.clone())
            .and(types::STALLED, Truth::True, reason, message)
    }

    /// It failed for good.
    pub fn failed(
        phase: &'static str,
        condition: &'static str,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self { phase, ..Self::default() }
            .and(condition, Truth::False, reason, message.clone())
            .and(types::SUCCEEDED, Truth::False, reason, message.clone())
            .and(types::READY, Truth::False, reason, message.clone())
            .and(types::STALLED, Truth::True, reason, message)
    }

    /// Nothing but a phase.
    pub fn phase(phase: &'static str) -> Self {
        Self { phase, ..Self::default() }
    }

    /// What comes next is refused by the API server, and will be until somebody changes something: said instead of progress.
    pub fn refused(mut self, message: &str) -> Self {
        // Said twice, a condition would change there and back each time, and be written each time.
        self.conditions.retain(|(type_, ..)| ![types::READY, types::STALLED].contains(type_));
        self.and(types::READY, Truth::False, "Refused", message).and(
            types::STALLED,
            Truth::True,
            "Refused",
            message,
        )
    }

    /// Adds a condition.
    pub fn and(
        mut self,
        type_: &'static str,
        truth: Truth,
        reason: &str,
        message: impl Into<String>,
    ) -> Self {
        self.conditions.push((type_, truth, reason.into(), message.into()));
        self
    }

    /// The plan.
    pub fn plan(mut self, plan: RestorePlan) -> Self {
        self.plan = Some(plan);
        self
    }

    /// Where the data ended up.
    pub fn reached(mut self, reached: Reached) -> Self {
        self.reached = Some(reached);
        self
    }

    /// The data set that was in use before.
    pub fn previous(mut self, data_set: Option<String>) -> Self {
        self.previous_data_set = data_set;
        self
    }

    /// The database serves again: now.
    pub fn ended(mut self) -> Self {
        self.ended = true;
        self
    }

    /// Nobody works: the time until somebody approves is no recovery time.
    pub fn idle(mut self) -> Self {
        self.idle = true;
        self
    }

    /// The status that says so. Equal to the present one when there is nothing new to say.
    pub fn status(self, restore: &Restore, now: Timestamp) -> RestoreStatus {
        let Self { phase, conditions: said, plan, reached, previous_data_set, ended, idle } = self;
        let generation = restore.metadata.generation;
        let mut status = restore.status.clone().unwrap_or_default();
        status.observed_generation = generation;
        status.phase = Some(phase.into());
        for type_ in ALL {
            if conditions::find(&status.conditions, type_).is_none() {
                let new = conditions::condition(
                    type_,
                    Truth::Unknown,
                    "Pending",
                    "not decided yet",
                    generation,
                    now,
                );
                status.conditions.push(new);
            }
        }
        for (type_, truth, reason, message) in said {
            // What was decided is decided: waiting for the next thing does not make it unknown again.
            let decided = conditions::find(&status.conditions, type_).is_some_and(|c| c.status == "True");
            if truth == Truth::Unknown && decided && type_ != types::READY {
                continue;
            }
            let new = conditions::condition(type_, truth, &reason, message, generation, now);
            conditions::set(&mut status.conditions, new);
        }
        for condition in &mut status.conditions {
            condition.observed_generation = generation;
        }
        status.data_set =
            Some(holdfast_core::ids::data_set(restore.metadata.uid.as_deref().unwrap_or_default()));
        status.plan = plan.or(status.plan);
        status.reached = reached.or(status.reached);
        status.previous_data_set = previous_data_set.or(status.previous_data_set);
        status.start_time = if idle { None } else { status.start_time.or(Some(Time(now))) };
        if ended && status.restore_time.is_none() {
            status.restore_time = Some(Time(now));
            let start = status.start_time.as_ref().map_or(now, |t| t.0);
            status.recovery_seconds = Some(now.as_second() - start.as_second());
        }
        status
    }
}

/// What an event says of a change of status: reason, message, whether it is a warning. None when only words changed.
pub fn event(old: &RestoreStatus, new: &RestoreStatus) -> Option<(String, String, bool)> {
    let changed = |type_: &str| {
        let (before, after) =
            (conditions::find(&old.conditions, type_), conditions::find(&new.conditions, type_)?);
        let same = before.is_some_and(|b| b.status == after.status && b.reason == after.reason);
        (!same && after.reason != "Pending").then(|| after.clone())
    };
    if let Some(stalled) = changed(types::STALLED).filter(|c| c.status == "True") {
        return Some((stalled.reason, stalled.message, true));
    }
    let order = [types::SUCCEEDED, types::ROLLED_BACK, types::RESTORED, types::VALIDATED, types::READY];
    let told = order.into_iter().find_map(changed)?;
    Some((told.reason, told.message, false))
}
