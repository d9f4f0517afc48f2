//! The Lease `<database>-primary`, as object and as record; and the keeper, which renews it or fences.
//!
//! The keeper runs on a thread of its own with a runtime of its own and does no file, volume or log I/O on its way:
//! a full disk or a busy main loop must not keep it from renewing, nor from fencing.

use super::{clock, fence, peers};
use holdfast_core::{names, wire::AgentConfig};
use holdfast_postgresql::failover::{HandOver, Record, Stay, fence_after, whose_consent};
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff::Timestamp,
};
use kube::{Api, api::PostParams};
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::sync::{Notify, mpsc, oneshot};

/// The Lease that says this.
pub fn to_lease(
    config: &AgentConfig,
    record: &Record,
    previous: Option<&Lease>,
    now: Timestamp,
) -> Result<Lease, serde_json::Error> {
    let mut labels = names::labels(&config.database);
    labels.insert(names::LABEL_DATA_SET.into(), record.data_set.clone());
    if !record.system_identifier.is_empty() {
        labels.insert(names::LABEL_SYSTEM_IDENTIFIER.into(), record.system_identifier.clone());
    }
    let acquired = previous
        .and_then(|p| p.spec.as_ref())
        .filter(|s| s.lease_transitions == i32::try_from(record.term).ok())
        .and_then(|s| s.acquire_time.clone());
    Ok(Lease {
        metadata: ObjectMeta {
            name: Some(names::lease_primary(&config.database)),
            namespace: Some(config.namespace.clone()),
            resource_version: previous.and_then(|p| p.metadata.resource_version.clone()),
            uid: previous.and_then(|p| p.metadata.uid.clone()),
            labels: Some(labels),
            annotations: Some(
                [(names::ANNOTATION_RECORD.to_string(), serde_json::to_string(record)?)].into(),
            ),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: record.holder.as_ref().map(|h| h.pod.clone()),
            lease_duration_seconds: Some(config.ttl_seconds),
            lease_transitions: i32::try_from(record.term).ok(),
            acquire_time: Some(acquired.unwrap_or(MicroTime(now))),
            renew_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    })
}

/// What a Lease says. An unreadable record is an error, never an empty one: it must not look like a free Lease.
pub fn to_record(lease: &Lease) -> anyhow::Result<Record> {
    let text = lease.metadata.annotations.as_ref().and_then(|a| a.get(names::ANNOTATION_RECORD));
    let text =
        text.ok_or_else(|| anyhow::anyhow!("the Lease carries no annotation {}", names::ANNOTATION_RECORD))?;
    Ok(serde_json::from_str(text)?)
}

/// What the main loop asks of the keeper.
enum Command {
    /// Write this record over `previous` (or create it) and from then on renew it.
    Write {
        config: Box<AgentConfig>,
        record: Box<Record>,
        previous: Option<Box<Lease>>,
        reply: oneshot::Sender<Result<(), String>>,
    },
    /// Give it back.
    Release { hand_over: Option<HandOver>, reply: oneshot::Sender<Result<(), String>> },
}

/// State that both threads see.
#[derive(Default)]
struct Shared {
    /// Until when postgres counts as healthy, milliseconds of `clock::now`.
    healthy_until: AtomicU64,
    held: Mutex<Option<Record>>,
    lost: Notify,
}

/// Handle of the keeper.
#[derive(Clone)]
pub struct Keeper {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Keeper {
    /// Starts the keeper's thread.
    pub fn start() -> anyhow::Result<Self> {
        let (commands, receiver) = mpsc::channel(8);
        let shared = Arc::new(Shared::default());
        let inside = shared.clone();
        std::thread::Builder::new().name("lease".into()).spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(keep(receiver, inside)),
                Err(error) => tracing::error!(%error, "the lease thread cannot start"),
            }
            // Without a keeper nobody would fence: the container must not go on.
            fence::kill_everything();
            std::process::exit(1);
        })?;
        Ok(Self { commands, shared })
    }

    /// Says until when postgres counts as healthy. Without this the Lease is not renewed.
    pub fn healthy_for(&self, time: Duration) {
        self.shared.healthy_until.store(millis(clock::now() + time), Ordering::SeqCst);
    }

    /// The record held, if it is.
    pub fn held(&self) -> Option<Record> {
        self.shared.held.lock().ok().and_then(|h| h.clone())
    }

    /// Waits until the Lease is lost and everything was killed.
    pub async fn lost(&self) {
        self.shared.lost.notified().await;
    }

    async fn ask(
        &self,
        command: Command,
        answer: oneshot::Receiver<Result<(), String>>,
    ) -> anyhow::Result<()> {
        self.commands.send(command).await.map_err(|_| anyhow::anyhow!("the lease thread is gone"))?;
        answer.await.map_err(|_| anyhow::anyhow!("the lease thread is gone"))?.map_err(anyhow::Error::msg)
    }

    /// Takes the Lease: creates it, or replaces exactly `previous`.
    pub async fn take(
        &self,
        config: &AgentConfig,
        record: Record,
        previous: Option<Lease>,
    ) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        let write = Command::Write {
            config: Box::new(config.clone()),
            record: Box::new(record),
            previous: previous.map(Box::new),
            reply,
        };
        self.ask(write, answer).await
    }

    /// Changes what the held Lease says.
    pub async fn update(&self, config: &AgentConfig, record: Record) -> anyhow::Result<()> {
        self.take(config, record, None).await
    }

    /// Gives the Lease back, to a successor if there is one. Only after postgres has stopped.
    pub async fn release(&self, hand_over: Option<HandOver>) -> anyhow::Result<()> {
        let (reply, answer) = oneshot::channel();
        self.ask(Command::Release { hand_over, reply }, answer).await
    }
}

/// What the keeper holds.
struct Holding {
    config: AgentConfig,
    record: Record,
    lease: Lease,
    /// Until when others believe in it: time before the last successful request, plus the TTL.
    until: Duration,
    /// Instances that a write named of which no answer came: they may be able to take the Lease, too.
    unsure: Vec<String>,
    /// Asking the others whether it may stay: until when all of them agreed that they believe in it.
    round: Option<tokio::task::JoinHandle<Option<Duration>>>,
}

impl Holding {
    fn ttl(&self) -> Duration {
        Duration::from_secs(u64::try_from(self.config.ttl_seconds).unwrap_or(6))
    }

    /// Fencing must be complete before `until`.
    fn fence_at(&self) -> Duration {
        (self.until + fence_after(self.ttl())).saturating_sub(self.ttl())
    }

    /// One that was just written.
    fn new(config: AgentConfig, record: Record, (lease, until): (Lease, Duration)) -> Self {
        Self { config, record, lease, until, unsure: Vec::new(), round: None }
    }

    /// The API server did not answer: asks the others, unless they are being asked.
    fn ask_to_stay(&mut self) {
        if self.round.is_some() {
            return;
        }
        let (Some(mut others), Some(holder)) = (whose_consent(&self.record), self.record.holder.clone())
        else {
            return;
        };
        let unasked = self.unsure.iter().filter(|m| **m != holder.pod && !others.contains(m));
        others.extend(unasked.cloned().collect::<Vec<_>>());
        let stay = Stay { holder, term: self.record.term, data_set: self.record.data_set.clone() };
        let (database, namespace) = (self.config.database.clone(), self.config.namespace.clone());
        let limit = self.left().min(self.ttl() / 3);
        let until = clock::now() + self.ttl();
        self.round = Some(tokio::spawn(async move {
            let asks = others.iter().map(|pod| peers::agrees(&database, &namespace, pod, &stay, limit));
            match futures::future::try_join_all(asks).await {
                Ok(_) => {
                    tracing::warn!(instances = ?others, "the API server does not answer: all others agree to this primary");
                    Some(until)
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "neither the API server nor all others agree to this primary");
                    None
                }
            }
        }));
    }

    /// Time until then: no call may outlast it.
    fn left(&self) -> Duration {
        self.fence_at().saturating_sub(clock::now())
    }
}

async fn keep(mut commands: mpsc::Receiver<Command>, shared: Arc<Shared>) {
    let client = loop {
        match holdfast_runtime::client::connect().await {
            Ok(client) => break client,
            Err(error) => {
                tracing::warn!(%error, "no client for the Lease");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    };
    let mut holding: Option<Holding> = None;
    let mut next = Duration::ZERO;
    loop {
        let wait = match &holding {
            Some(h) => next.min(h.fence_at()).saturating_sub(clock::now()),
            None => Duration::from_secs(3600),
        };
        let round = async {
            match holding.as_mut().and_then(|h| h.round.as_mut()) {
                Some(round) => round.await.ok().flatten(),
                None => std::future::pending().await,
            }
        };
        // In this order: what the others have agreed to counts before anything is fenced.
        let (command, heard) = tokio::select! {
            biased;
            until = round => (None, Some(until)),
            command = commands.recv() => match command { Some(c) => (Some(c), None), None => return },
            () = tokio::time::sleep(wait) => (None, None),
        };
        if let (Some(held), Some(until)) = (&mut holding, heard) {
            held.round = None;
            held.until = until.map_or(held.until, |until| held.until.max(until));
        }
        match command {
            Some(Command::Write { config, record, previous, reply }) => {
                let previous = match &holding {
                    Some(h) => Some(h.lease.clone()),
                    None => previous.map(|p| *p),
                };
                let limit = holding.as_ref().map_or(Duration::MAX, Holding::left);
                let result = write(&client, &config, &record, previous.as_ref(), limit).await;
                let answer = result.as_ref().map(|_| ()).map_err(ToString::to_string);
                match (result, &mut holding) {
                    (Ok(written), _) => holding = Some(Holding::new(*config, *record, written)),
                    // It may have landed.
                    (Err(error), Some(held)) if !refused(&error) => {
                        held.unsure.extend(record.members);
                        held.ask_to_stay();
                    }
                    _ => {}
                }
                if answer.is_ok() {
                    publish(&shared, &holding);
                    next = clock::now() + holding.as_ref().map_or(Duration::ZERO, |h| h.ttl() / 3);
                }
                let _ = reply.send(answer);
            }
            Some(Command::Release { hand_over, reply }) => {
                let answer = match &holding {
                    None => Ok(()),
                    Some(h) => {
                        let free = Record { holder: None, hand_over, ..h.record.clone() };
                        write(&client, &h.config, &free, Some(&h.lease), h.left())
                            .await
                            .map(|_| ())
                            .map_err(|e| e.to_string())
                    }
                };
                holding = None;
                publish(&shared, &holding);
                let _ = reply.send(answer);
            }
            None => {}
        }
        let Some(held) = &mut holding else { continue };
        let now = clock::now();
        let healthy = shared.healthy_until.load(Ordering::SeqCst) > millis(now);
        if now >= held.fence_at() {
            fence::kill_everything();
            tracing::error!(healthy, "the Lease could not be renewed in time: everything was killed");
            holding = None;
            publish(&shared, &holding);
            shared.lost.notify_one();
            continue;
        }
        if now < next {
            continue;
        }
        next = now + held.ttl() / 3;
        if !healthy {
            tracing::warn!("postgres is not healthy: the Lease is not renewed");
            continue;
        }
        match write(&client, &held.config, &held.record, Some(&held.lease), held.left()).await {
            Ok((lease, until)) => {
                held.lease = lease;
                held.until = until;
                held.unsure.clear();
            }
            Err(error) if refused(&error) => {
                // Somebody wrote it. If it still names this member (an edit by hand, an answer that was lost) go on from there.
                match current(&client, held).await {
                    Some(lease) => {
                        held.lease = lease;
                        next = now;
                    }
                    None => next = (now + Duration::from_millis(200)).min(held.fence_at()),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "renewing the Lease");
                held.ask_to_stay();
                // Sooner than a whole period: every chance before the fence counts.
                next = now + held.ttl() / 12;
            }
        }
    }
}

/// Whether the API server did not do it since it is not what this member thought.
fn refused(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_conflict() || status.is_not_found())
}

fn publish(shared: &Shared, holding: &Option<Holding>) {
    if let Ok(mut held) = shared.held.lock() {
        *held = holding.as_ref().map(|h| h.record.clone());
    }
}

/// Whether a Lease is still this member's: the holder and term that it wrote, or, where somebody made the record unreadable,
/// the object that it wrote in all else. No member writes an unreadable record, and none takes a Lease that has one, so it
/// cannot be a successor's; the holder, who knows what it said, writes it anew instead of leaving everybody without a primary.
fn still_ours(lease: &Lease, uid: Option<&str>, ours: &Record) -> bool {
    match to_record(lease) {
        Ok(there) => there.holder == ours.holder && there.term == ours.term,
        Err(error) => {
            let spec = lease.spec.as_ref();
            let ours = lease.metadata.uid.as_deref() == uid
                && ours.holder.as_ref().map(|h| &h.pod) == spec.and_then(|s| s.holder_identity.as_ref())
                && i32::try_from(ours.term).ok() == spec.and_then(|s| s.lease_transitions);
            if ours {
                tracing::warn!(%error, "the record on the Lease was made unreadable: it is written anew");
            }
            ours
        }
    }
}

/// Reads the Lease again; `Some` if it is still this member's.
async fn current(client: &kube::Client, held: &Holding) -> Option<Lease> {
    let api: Api<Lease> = Api::namespaced(client.clone(), &held.config.namespace);
    let name = names::lease_primary(&held.config.database);
    let lease =
        tokio::time::timeout(held.left().min(held.ttl() / 4), api.get_opt(&name)).await.ok()?.ok()??;
    still_ours(&lease, held.lease.metadata.uid.as_deref(), &held.record).then_some(lease)
}

/// Writes the Lease with its resourceVersion as precondition; returns it and until when it counts.
async fn write(
    client: &kube::Client,
    config: &AgentConfig,
    record: &Record,
    previous: Option<&Lease>,
    limit: Duration,
) -> Result<(Lease, Duration), kube::Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), &config.namespace);
    let ttl = Duration::from_secs(u64::try_from(config.ttl_seconds).unwrap_or(6));
    let lease = to_lease(config, record, previous, Timestamp::now()).map_err(kube::Error::SerdeError)?;
    let sent = clock::now();
    let parameters =
        PostParams { field_manager: Some(names::managers::AGENT.into()), ..PostParams::default() };
    let call = async {
        match previous {
            Some(_) => api.replace(&names::lease_primary(&config.database), &parameters, &lease).await,
            None => api.create(&parameters, &lease).await,
        }
    };
    holdfast_runtime::apply::within(limit.min(ttl / 4), call).await.map(|lease| (lease, sent + ttl))
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_postgresql::failover::Holder;

    #[test]
    fn an_unreadable_record_is_no_free_lease() {
        assert!(to_record(&Lease::default()).is_err());
    }

    #[test]
    fn a_holder_whose_record_was_made_unreadable_still_holds_the_lease() {
        let config = serde_json::json!({"database": "meadow", "namespace": "farm", "databaseUid": "u9", "instances": 2,
            "dataSet": "d1", "history": "h1", "systemIdentifier": "42", "version": "17", "appDatabase": "app",
            "appOwner": "app", "encoding": "UTF8", "locale": "C", "walSegmentSizeMb": 16, "superuser": false,
            "durability": {"mode": "Required", "standbys": 1}, "ttlSeconds": 6, "maxReplicaLagSeconds": 30,
            "parameters": {}, "pgHba": [], "memoryBytes": 0, "archive": null});
        let config: AgentConfig = serde_json::from_value(config).unwrap();
        let record = Record {
            holder: Some(Holder { pod: "meadow-1".into(), uid: "u1".into(), nonce: "n1".into() }),
            last_holder: "meadow-1".into(),
            term: 7,
            timeline: 3,
            data_set: "d1".into(),
            system_identifier: "42".into(),
            synchronous: vec!["meadow-0".into()],
            confirmations: 1,
            members: vec!["meadow-0".into(), "meadow-1".into()],
            hand_over: None,
            switchover: None,
        };
        let mut lease = to_lease(&config, &record, None, Timestamp::UNIX_EPOCH).unwrap();
        lease.metadata.uid = Some("first".into());
        assert!(still_ours(&lease, Some("first"), &record));
        let mut garbage = lease.clone();
        garbage.metadata.annotations = Some([(names::ANNOTATION_RECORD.into(), "{{".into())].into());
        assert!(still_ours(&garbage, Some("first"), &record));
        let removed = Lease {
            metadata: ObjectMeta { annotations: None, ..garbage.metadata.clone() },
            ..garbage.clone()
        };
        assert!(still_ours(&removed, Some("first"), &record));
        // Whoever may have it instead is not written over: another object, another holder, another term.
        assert!(!still_ours(&garbage, Some("second"), &record));
        for spec in [
            LeaseSpec { holder_identity: Some("meadow-0".into()), ..garbage.spec.clone().unwrap() },
            LeaseSpec { holder_identity: None, ..garbage.spec.clone().unwrap() },
            LeaseSpec { lease_transitions: Some(8), ..garbage.spec.clone().unwrap() },
        ] {
            assert!(!still_ours(&Lease { spec: Some(spec), ..garbage.clone() }, Some("first"), &record));
        }
        let taken =
            to_lease(&config, &Record { term: 8, ..record.clone() }, Some(&lease), Timestamp::UNIX_EPOCH);
        assert!(!still_ours(&taken.unwrap(), Some("first"), &record));
    }
}
