//! The leader Lease: at most one replica of an operator works. Touches one Lease, `<operator>` in its own namespace.
//!
//! Clocks of different machines are never compared: whether the Lease ran out is measured from the moment at which
//! this process saw its record change, on this process's own monotonic clock. A holder counts from before it sent its
//! renewal and stops well before anyone could take over.

use crate::{
    apply,
    health::{Health, Role},
    telemetry,
};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::time::Instant;

/// A Lease whose record has not changed for so long may be taken.
pub const DURATION: Duration = Duration::from_secs(15);
/// A holder that could not renew for so long stops working.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and looked at.
pub const RETRY: Duration = Duration::from_secs(2);
/// The thread that ends a process whose runtime is stuck fires here: after [`RENEW_DEADLINE`], before [`DURATION`].
const WATCHDOG: Duration = Duration::from_secs(12);
/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(4);

/// A Lease's record as this process saw it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Who holds it; empty when it was let go.
    pub holder: String,
    /// When the holder says it renewed: only ever compared with itself, never with a clock.
    pub renewed: Option<Timestamp>,
    /// How long it lasts without renewal.
    pub duration: Duration,
    /// When this process first saw this very record.
    pub seen: Instant,
}

/// What to do about the Lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// There is none: create it.
    Create,
    /// It was let go, or ran out: take it.
    Take,
    /// It is ours: renew it.
    Renew,
    /// Another one's: look again later.
    Wait,
}

/// The decision: what was observed, who asks, and now, on the clock that `Observed::seen` was read from.
pub fn decide(observed: Option<&Observed>, identity: &str, now: Instant) -> Step {
    match observed {
        None => Step::Create,
        Some(record) if record.holder == identity => Step::Renew,
        Some(record) if record.holder.is_empty() => Step::Take,
        Some(record) if now.saturating_duration_since(record.seen) >= record.duration => Step::Take,
        Some(_) => Step::Wait,
    }
}

/// The record after a look at the Lease. `seen` moves only when the record changed.
pub fn observe(before: Option<&Observed>, lease: &Lease, now: Instant) -> Observed {
    let spec = lease.spec.clone().unwrap_or_default();
    let seconds = spec.lease_duration_seconds.and_then(|s| u64::try_from(s).ok());
    let mut record = Observed {
        holder: spec.holder_identity.unwrap_or_default(),
        renewed: spec.renew_time.map(|t| t.0),
        duration: seconds.map_or(DURATION, Duration::from_secs),
        seen: now,
    };
    if let Some(before) = before {
        let same = before.holder == record.holder && before.renewed == record.renewed;
        if same {
            record.seen = before.seen;
        }
    }
    record
}

/// The Lease's next content: held by `identity`, renewed at `now`.
pub fn claim(current: Option<&Lease>, name: &str, identity: &str, now: Timestamp) -> Lease {
    let metadata = match current {
        // With the resourceVersion: of two that take it at once, one is refused.
        Some(lease) => ObjectMeta { managed_fields: None, ..lease.metadata.clone() },
        None => ObjectMeta { name: Some(name.into()), ..ObjectMeta::default() },
    };
    let old = current.and_then(|l| l.spec.clone()).unwrap_or_default();
    let same = old.holder_identity.as_deref() == Some(identity);
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(identity.into()),
            lease_duration_seconds: Some(i32::try_from(DURATION.as_secs()).unwrap_or(i32::MAX)),
            acquire_time: if same { old.acquire_time } else { Some(MicroTime(now)) },
            renew_time: Some(MicroTime(now)),
            lease_transitions: if same {
                old.lease_transitions
            } else {
                Some(old.lease_transitions.map_or(0, |n| n.saturating_add(1)))
            },
            ..LeaseSpec::default()
        }),
    }
}

/// The Lease's content when its holder lets go: anyone may take it at once.
pub fn released(current: &Lease, now: Timestamp) -> Lease {
    let old = current.spec.clone().unwrap_or_default();
    Lease {
        metadata: ObjectMeta { managed_fields: None, ..current.metadata.clone() },
        spec: Some(LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            acquire_time: None,
            renew_time: Some(MicroTime(now)),
            lease_transitions: old.lease_transitions,
            ..LeaseSpec::default()
        }),
    }
}

/// Why a holder must stop.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// Somebody else has it.
    #[error("the leader Lease {name} went to {holder:?}")]
    Taken {
        /// The Lease.
        name: String,
        /// Who has it now.
        holder: String,
    },
    /// It could not be renewed in time.
    #[error("the leader Lease {name} could not be renewed for {} s: {cause}", RENEW_DEADLINE.as_secs())]
    NotRenewed {
        /// The Lease.
        name: String,
        /// The last failure.
        cause: String,
    },
}

/// Takes, holds and releases one leader Lease.
pub struct Elector {
    api: Api<Lease>,
    name: String,
    identity: String,
}

/// A Lease in hand.
pub struct Held {
    lease: Lease,
    /// Read before the request that renewed it was sent: it cannot run out for others earlier than counted from here.
    since: Instant,
    watchdog: Watchdog,
}

impl Elector {
    /// For the Lease `name` behind `api`. `identity` must be this process's own: the pod's name, as a pod runs once.
    pub fn new(api: Api<Lease>, name: &str, identity: &str) -> Self {
        Self { api, name: name.into(), identity: identity.into() }
    }

    /// Waits until the Lease is ours.
    pub async fn acquire(&self, health: &Health) -> Held {
        let mut observed: Option<Observed> = None;
        loop {
            match self.attempt(&mut observed).await {
                Ok(Some((lease, since))) => {
                    tracing::info!(lease = self.name, identity = self.identity, "leading");
                    return Held { lease, since, watchdog: Watchdog::start(since) };
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(
                        lease = self.name,
                        error = telemetry::chain(&error),
                        "cannot take the leader Lease"
                    );
                }
            }
            let holder = observed.as_ref().map(|o| o.holder.clone()).unwrap_or_default();
            let role = Role::Standby { holder };
            if health.readiness().role != role {
                tracing::info!(lease = self.name, ?role, "waiting for the leader Lease");
                health.role(role);
            }
            tokio::time::sleep(RETRY.mul_f64(1.0 + 0.2 * crate::backoff::random())).await;
        }
    }

    /// One look and, if allowed, one write.
    async fn attempt(
        &self,
        observed: &mut Option<Observed>,
    ) -> Result<Option<(Lease, Instant)>, kube::Error> {
        let lease = limited(self.api.get_opt(&self.name)).await?;
        let now = Instant::now();
        *observed = lease.as_ref().map(|lease| observe(observed.as_ref(), lease, now));
        let wanted = claim(lease.as_ref(), &self.name, &self.identity, Timestamp::now());
        let sent = Instant::now();
        let written = match decide(observed.as_ref(), &self.identity, now) {
            Step::Wait => return Ok(None),
            Step::Create => limited(self.api.create(&PostParams::default(), &wanted)).await,
            Step::Take | Step::Renew => {
                limited(self.api.replace(&self.name, &PostParams::default(), &wanted)).await
            }
        };
        match written {
            Ok(lease) => Ok(Some((lease, sent))),
            // Somebody was faster.
            Err(kube::Error::Api(s)) if s.is_conflict() || s.is_already_exists() || s.is_not_found() => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Renews until that fails for too long or another one has it: work must stop at once then.
    pub async fn hold(&self, held: &mut Held) -> Lost {
        let mut cause = String::from("no attempt yet");
        // The newest renewal without an answer: what it wrote, and when it was sent.
        let mut unanswered: Option<(Option<i64>, Instant)> = None;
        loop {
            // Never beyond the deadline, whatever a request does.
            let left = RENEW_DEADLINE.saturating_sub(held.since.elapsed());
            if left.is_zero() {
                return Lost::NotRenewed { name: self.name.clone(), cause };
            }
            tokio::time::sleep(RETRY.min(left)).await;
            let left = RENEW_DEADLINE.saturating_sub(held.since.elapsed());
            let sent = Instant::now();
            let wanted = claim(Some(&held.lease), &self.name, &self.identity, Timestamp::now());
            let params = PostParams::default();
            let renewal = renewed_at(&wanted);
            let attempt = limited(self.api.replace(&self.name, &params, &wanted));
            match tokio::time::timeout(left, attempt).await {
                Ok(Ok(lease)) => {
                    held.lease = lease;
                    held.since = sent;
                    held.watchdog.extend(sent);
                }
                // The record is not the one we wrote last: our own write whose answer was lost, or another holder.
                Ok(Err(kube::Error::Api(status))) if status.is_conflict() || status.is_not_found() => {
                    cause = status.message.clone();
                    match tokio::time::timeout(left, limited(self.api.get_opt(&self.name))).await {
                        Ok(Ok(Some(lease))) => {
                            let holder = lease
                                .spec
                                .as_ref()
                                .and_then(|s| s.holder_identity.clone())
                                .unwrap_or_default();
                            if holder != self.identity {
                                return Lost::Taken { name: self.name.clone(), holder };
                            }
                            // It landed after all, and it landed after it was sent.
                            let seen = renewed_at(&lease);
                            if let Some((_, sent)) = unanswered.take().filter(|(wrote, _)| *wrote == seen) {
                                held.since = sent;
                                held.watchdog.extend(sent);
                            }
                            held.lease = lease;
                        }
                        Ok(Ok(None)) => {
                            return Lost::Taken { name: self.name.clone(), holder: String::new() };
                        }
                        Ok(Err(error)) => cause = telemetry::chain(&error),
                        Err(_) => {}
                    }
                }
                Ok(Err(error)) => {
                    unanswered = Some((renewal, sent));
                    cause = telemetry::chain(&error);
                    tracing::warn!(lease = self.name, error = cause, "cannot renew the leader Lease");
                }
                Err(_) => {
                    unanswered = Some((renewal, sent));
                    cause = "no answer".into();
                }
            }
        }
    }

    /// Lets go, so that another replica need not wait. All work must have ended. A failure costs others only the wait.
    pub async fn release(&self, held: Held) {
        let lease = released(&held.lease, Timestamp::now());
        match limited(self.api.replace(&self.name, &PostParams::default(), &lease)).await {
            Ok(_) => tracing::info!(lease = self.name, "released the leader Lease"),
            Err(error) => {
                tracing::warn!(
                    lease = self.name,
                    error = telemetry::chain(&error),
                    "cannot release the leader Lease"
                );
            }
        }
    }
}

/// When a Lease was renewed, in the microseconds that the API keeps.
fn renewed_at(lease: &Lease) -> Option<i64> {
    Some(lease.spec.as_ref()?.renew_time.as_ref()?.0.as_microsecond())
}

async fn limited<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    apply::within(REQUEST, call).await
}

/// A thread that ends the process when the Lease was not renewed in time: also when the runtime itself is stuck, or the
/// process was frozen and thawed, where no timer of the runtime can be trusted to fire before other work goes on.
///
/// It counts on the operating system's clock, which nothing in the process can stop.
struct Watchdog {
    origin: std::time::Instant,
    /// Milliseconds after `origin` at which to end the process; 0: never.
    deadline: Arc<AtomicU64>,
}

impl Watchdog {
    fn start(since: Instant) -> Self {
        let watchdog = Self { origin: std::time::Instant::now(), deadline: Arc::default() };
        watchdog.extend(since);
        let (origin, deadline) = (watchdog.origin, Arc::clone(&watchdog.deadline));
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(200));
                match deadline.load(Ordering::Acquire) {
                    0 => return,
                    limit if origin.elapsed() >= Duration::from_millis(limit) => {
                        tracing::error!("the leader Lease was not renewed in time; ending the process");
                        std::process::exit(1);
                    }
                    _ => {}
                }
            }
        });
        watchdog
    }

    fn extend(&self, since: Instant) {
        let limit = (self.origin.elapsed() + WATCHDOG).saturating_sub(since.elapsed());
        self.deadline.store(u64::try_from(limit.as_millis()).unwrap_or(u64::MAX), Ordering::Release);
    }
}

impl Drop for Watchdog {
    /// Whoever lets go of a [`Held`] has stopped working under it.
    fn drop(&mut self) {
        self.deadline.store(0, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: &str = "database-operator-a";
    const OTHER: &str = "database-operator-b";

    fn time(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_free_lease_is_created_or_taken() {
        let now = Instant::now();
        assert_eq!(decide(None, ME, now), Step::Create);
        let held = claim(None, "database-operator", OTHER, time(100));
        let free = released(&held, time(101));
        assert_eq!(decide(Some(&observe(None, &free, now)), ME, now), Step::Take);
    }

    #[test]
    fn anothers_lease_runs_out_only_on_our_own_clock() {
        let start = Instant::now();
        // Its renewal time lies years back: no reason to take it.
        let lease = claim(None, "database-operator", OTHER, time(100));
        let first = observe(None, &lease, start);
        assert_eq!(decide(Some(&first), ME, start), Step::Wait);
        let almost = start + DURATION - Duration::from_millis(1);
        let again = observe(Some(&first), &lease, almost);
        assert_eq!(again.seen, start);
        assert_eq!(decide(Some(&again), ME, almost), Step::Wait);
        assert_eq!(decide(Some(&again), ME, start + DURATION), Step::Take);
        // Renewed in between, whatever its clock says: the count begins again.
        let renewed = claim(Some(&lease), "database-operator", OTHER, time(90));
        let seen = observe(Some(&again), &renewed, almost);
        assert_eq!(decide(Some(&seen), ME, start + DURATION), Step::Wait);
    }

    #[test]
    fn ones_own_lease_is_renewed_without_waiting() {
        let now = Instant::now();
        let lease = claim(None, "database-operator", ME, time(100));
        assert_eq!(decide(Some(&observe(None, &lease, now)), ME, now), Step::Renew);
    }

    #[test]
    fn transitions_count_changes_of_the_holder_only() {
        let first = claim(None, "database-operator", OTHER, time(100));
        assert_eq!(first.spec.as_ref().unwrap().lease_transitions, Some(0));
        let renewed = claim(Some(&first), "database-operator", OTHER, time(102)).spec.unwrap();
        assert_eq!((renewed.lease_transitions, renewed.acquire_time.unwrap().0), (Some(0), time(100)));
        let taken = claim(Some(&first), "database-operator", ME, time(120)).spec.unwrap();
        assert_eq!((taken.lease_transitions, taken.acquire_time.unwrap().0), (Some(1), time(120)));
        let free = released(&first, time(130)).spec.unwrap();
        assert_eq!(free.lease_transitions, Some(0));
    }

    #[test]
    fn a_write_is_conditional_on_what_was_read() {
        let mut lease = claim(None, "database-operator", OTHER, time(100));
        lease.metadata.resource_version = Some("7".into());
        let taken = claim(Some(&lease), "database-operator", ME, time(120));
        assert_eq!(taken.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(released(&lease, time(120)).metadata.resource_version.as_deref(), Some("7"));
    }

    #[test]
    fn work_stops_before_another_may_begin() {
        assert!(RENEW_DEADLINE < WATCHDOG && WATCHDOG + Duration::from_secs(1) < DURATION);
        assert!(RETRY + REQUEST < RENEW_DEADLINE, "one failed attempt must not cost the Lease");
    }
}
