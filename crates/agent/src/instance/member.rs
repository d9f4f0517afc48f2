//! The main loop of an instance: observe, decide, act.

use super::{
    Identity,
    archiver::Archiver,
    disk::Disk,
    fence,
    files::Files,
    fork::Compared,
    guard::Guard,
    lease::Keeper,
    peers::Asked,
    postgres::{Postgres, Running},
    shared::Shared,
    sql::{Look, Settled, look},
    takeover::{Closed, Counters},
    vote::{Agreed, Promised, version_of},
    watches::SeenLease,
};
use crate::{
    instance::clock,
    sql::{self, Session},
    state::State,
};
use anyhow::Context;
use holdfast_core::{
    names,
    report::{InstanceReport, PagesReport, Role, VolumeStage},
    wire::AgentConfig,
};
use holdfast_postgresql::{
    failover::{Action, Data, HandOver, Record, Server, Synchronous, View, decide, successor},
    settings::Instance,
};
use k8s_openapi::api::{coordination::v1::Lease, core::v1::Pod};
use kube::Api;
use std::{path::PathBuf, time::Duration};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, timeout},
};

/// How often the loop turns when nothing wakes it.
const TICK: Duration = Duration::from_millis(500);
/// How often the others are asked for their promises at most.
const POLL_AGAIN: Duration = Duration::from_millis(200);
/// After so many calls about the same Lease that came to nothing they are seldom: each is written to the volumes of all.
const MANY_CALLS: u32 = 20;
/// How often they are asked then.
const POLL_SELDOM: Duration = Duration::from_secs(2);
/// How long a server may take to answer after its start before the Lease is let go.
pub const START_LIMIT: Duration = Duration::from_secs(60);
/// A reload reaches the session that looks a moment after it was asked for: only the second look later is sure to show it.
const READ: u32 = 2;
/// How long a fast shutdown may take.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// Everything that the loop owns.
pub struct Member {
    /// This pod.
    pub identity: Identity,
    /// Client.
    pub client: kube::Client,
    /// Configuration, kept up to date.
    pub config: watch::Receiver<AgentConfig>,
    /// The Lease, kept up to date.
    pub lease: watch::Receiver<SeenLease>,
    /// Peers' questions.
    pub asked: mpsc::Receiver<Asked>,
    /// The keeper of the Lease.
    pub keeper: Keeper,
    /// The server.
    pub postgres: Postgres,
    /// Room on the volume.
    pub disk: Disk,
    /// The archiver.
    pub archiver: std::sync::Arc<Archiver>,
    /// What others see.
    pub shared: Shared,
    /// What changes of primary cost.
    pub counters: Counters,
    /// The volume.
    pub volume: PathBuf,
    /// Session with the local server.
    pub session: Option<Session>,
    /// What is remembered between turns.
    pub memory: Memory,
}

/// What the loop remembers. Nothing here is needed after a restart.
#[derive(Default)]
pub struct Memory {
    /// The server was started and has not answered yet, since.
    pub starting: Option<Instant>,
    /// When the others were last asked for their promises.
    pub polled: Option<Instant>,
    /// When the server was last started.
    pub began: Option<Instant>,
    /// Leading duties are done for this term.
    pub led: Option<u64>,
    /// When the Service was last checked.
    pub pointed: Option<Instant>,
    /// When each standby was last seen streaming.
    pub streamed: std::collections::BTreeMap<String, Instant>,
    /// Since when this standby does not stream although somebody leads.
    pub cut_off: Option<Instant>,
    /// What was promised to candidates, as it is kept on the volume.
    pub promised: Promised,
    /// The Lease, or that there is none, was seen in an earlier turn.
    pub acquainted: bool,
    /// Whose staying without the API server was agreed to last.
    pub agreed: Option<Agreed>,
    /// A change of the synchronous set was sent to the Lease, and no answer came.
    pub unsure: bool,
    /// Calls for votes about one version of the Lease.
    pub calls: (u64, u32),
    /// What the running server was told to wait for.
    pub obeys: Option<Synchronous>,
    /// Starts of the server in a row that it did not live to answer.
    pub starts: u32,
    /// The Lease as the last view saw it: the only version that may be replaced on that view's word.
    pub decided_on: Option<Lease>,
    /// The holder's container was seen terminated: its nonce.
    pub terminated: String,
    /// When the holder's pod was last looked at.
    pub looked_at_holder: Option<Instant>,
    /// Hash of the configuration that the server is known to have read, so that "a restart is pending" or not is true of it.
    pub hash: String,
    /// Hash of the configuration in the files.
    pub written: String,
    /// Looks at the server since it was told to read them.
    pub looks: u32,
    /// Version, once known.
    pub version: String,
    /// Leading began, for the synchronous set's patience.
    pub lead_since: Option<Instant>,
    /// Settings that the running standby needs at least.
    pub at_least: std::collections::BTreeMap<String, i64>,
    /// When the WAL was last looked through for segments that nobody marked.
    pub marked: Option<Instant>,
    /// The next turn has something to do at once.
    pub hurry: bool,
    /// What a full volume means.
    pub guard: Guard,
    /// Whether a standby whose WAL ends inside a record has replayed what it can.
    pub settled: Settled,
    /// The primary that this standby's WAL was compared with.
    pub compared: Compared,
    /// Since when nothing can be written, and why.
    pub closed: Closed,
}

impl Member {
    /// Lives until cancelled.
    pub async fn live(&mut self) {
        loop {
            self.shared.beat();
            if let Err(error) = self.turn().await {
                self.after_error(&error).await;
                let mut report = self.shared.report();
                let words = self.in_words(&error);
                // One that lasts is told once, and stays in the report.
                if report.error != words {
                    tracing::warn!(error = words, "turn");
                }
                report.error = words;
                report.ready = false;
                self.shared.publish(report);
            }
            let pause = if std::mem::take(&mut self.memory.hurry) { Duration::ZERO } else { TICK };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = self.config.changed() => {}
                changed = self.lease.changed() => {
                    // Each renewal by another wakes the loop; no need to hurry for those.
                    if changed.is_ok() && self.keeper.held().is_none() { tokio::time::sleep(Duration::from_millis(20)).await; }
                }
                () = self.keeper.lost() => tracing::error!("the Lease is lost"),
                () = self.disk.turned() => {}
                call = self.asked.recv() => if let Some(asked) = call { self.answer_peer(asked).await },
            }
        }
    }

    /// One turn.
    async fn turn(&mut self) -> anyhow::Result<()> {
        if self.postgres.running() == Running::Died {
            // Its children may live on and still commit.
            fence::kill_everything();
            self.postgres.collect().await;
            self.session = None;
            self.after_death().await;
        }
        let config = self.config.borrow().clone();
        let look = self.look().await;
        let mut view = self.view(&config, look.as_ref()).await?;
        let Some(view) = view.as_mut() else {
            return self.tell(&config, look.as_ref(), "waiting for the first word about the Lease", "").await;
        };
        self.keep_health(&config, look.as_ref());
        let mut action = decide(view);
        if action == Action::Poll {
            // Members that ask each other wake each other: without a pause they would do nothing else.
            let pause = if self.memory.calls.1 < MANY_CALLS { POLL_AGAIN } else { POLL_SELDOM };
            if self.memory.polled.is_some_and(|at| at.elapsed() < pause) {
                return self.tell(&config, look.as_ref(), "asking the other instances", "").await;
            }
            self.memory.polled = Some(Instant::now());
            self.poll(&config, view).await?;
            action = decide(view);
        }
        tracing::debug!(?action, "decided");
        self.act(&config, view, look, action).await
    }

    /// Asks the server how it is. `None`: it does not run, or does not answer yet.
    pub(super) async fn look(&mut self) -> Option<Look> {
        if self.postgres.running() != Running::Yes {
            self.session = None;
            return None;
        }
        if self.session.is_none() {
            self.session = sql::local("postgres").await.ok();
        }
        match look(self.session.as_ref()?).await {
            Ok(mut look) => {
                let replayed = self.memory.settled.all_replayed(&look, Instant::now());
                if replayed && !look.replayed {
                    // What cannot be replayed is not had, whether it ends inside a record or is damaged: another one may have it whole.
                    look.flushed = look.ends.0;
                }
                look.replayed = replayed;
                self.memory.starting = None;
                self.memory.looks = self.memory.looks.saturating_add(1);
                self.memory.starts = 0;
                self.memory.version.clone_from(&look.version);
                Some(look)
            }
            Err(error) => {
                // Normal for a moment after a start, and loud when it lasts.
                if self.memory.starting.is_none_or(|since| since.elapsed() > Duration::from_secs(10)) {
                    tracing::warn!(error = format!("{error:#}"), "the server does not answer as it should");
                }
                self.session = None;
                None
            }
        }
    }

    /// Tells the keeper whether postgres deserves the Lease, by phase: an answer counts for one TTL, a start for its limit.
    fn keep_health(&self, config: &AgentConfig, look: Option<&Look>) {
        let ttl = Duration::from_secs(u64::try_from(config.ttl_seconds).unwrap_or(6));
        if look.is_some() {
            self.keeper.healthy_for(ttl);
        } else if self.memory.starting.is_some_and(|since| since.elapsed() < self.start_limit()) {
            self.keeper.healthy_for(ttl / 2);
        }
    }

    /// How long a start may take. Longer after each that failed: replay of much WAL begins anew with every start, and a limit
    /// that never grows would end it for ever at the same place.
    pub fn start_limit(&self) -> Duration {
        START_LIMIT * (1 << self.memory.starts.saturating_sub(1).min(6))
    }

    pub(super) async fn view(
        &mut self,
        config: &AgentConfig,
        look: Option<&Look>,
    ) -> anyhow::Result<Option<View>> {
        let seen = self.lease.borrow().clone();
        if !seen.known {
            return Ok(None);
        }
        self.memory.decided_on.clone_from(&seen.lease);
        // The holder knows what it said, and writes it anew with the next renewal.
        if let Some(error) = seen.unreadable
            && self.keeper.held().is_none()
        {
            anyhow::bail!(
                "LeaseUnreadable: annotation {} of Lease {} cannot be read ({error}), so nobody knows whose word a takeover \
                 needs, and none is begun: write back what it said; or, once no instance is primary, delete the Lease, and \
                 the instances agree anew when all of them are there",
                names::ANNOTATION_RECORD,
                names::lease_primary(&config.database)
            );
        }
        let data = match State::load(&self.volume)? {
            None => Data::Empty,
            Some(state) => Data::Present {
                data_set: state.data_set,
                system_identifier: state.system_identifier,
                unled: state.unled,
            },
        };
        let server = match (self.postgres.running(), look) {
            (Running::Yes, Some(look)) => look.server(),
            (Running::Yes, None) => Server::Starting,
            _ => Server::Down,
        };
        // What this member holds it knows better than any watch.
        let record = self.keeper.held().or(seen.record);
        let (lease_uid, version) = version_of(seen.lease.as_ref());
        let promise = self.promise_about(record.as_ref(), lease_uid, version).await?;
        let consent = self.consent(record.as_ref());
        let holder_terminated = self.holder_terminated(config, record.as_ref(), &server).await;
        Ok(Some(View {
            me: self.identity.holder.clone(),
            data_set: config.data_set.clone(),
            system_identifier: config.system_identifier.clone(),
            durability: config.durability.mode,
            standbys: config.durability.standbys,
            members: (0..config.instances).map(|n| names::pod(&config.database, n)).collect(),
            data,
            server,
            lease: record,
            version,
            unchanged: clock::now().saturating_sub(seen.changed),
            consent,
            ttl: Duration::from_secs(u64::try_from(config.ttl_seconds).unwrap_or(6)),
            holder_terminated,
            votes: Vec::new(),
            promise,
            polled: false,
        }))
    }

    /// Whether the holder's very incarnation is known to be over. Asked only when nothing streams from it, once a second.
    async fn holder_terminated(
        &mut self,
        config: &AgentConfig,
        record: Option<&Record>,
        server: &Server,
    ) -> bool {
        let Some(holder) = record.and_then(|r| r.holder.as_ref()) else { return false };
        if *holder == self.identity.holder || matches!(server, Server::Standby { streaming: true, .. }) {
            return false;
        }
        if self.memory.terminated == holder.nonce {
            return true;
        }
        if self.memory.looked_at_holder.is_some_and(|at| at.elapsed() < Duration::from_secs(1)) {
            return false;
        }
        self.memory.looked_at_holder = Some(Instant::now());
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &config.namespace);
        let Ok(Ok(Some(pod))) = timeout(Duration::from_secs(1), api.get_opt(&holder.pod)).await else {
            return false;
        };
        let statuses = pod.status.and_then(|s| s.container_statuses).unwrap_or_default();
        let over =
            statuses.iter().flat_map(|s| [s.state.as_ref(), s.last_state.as_ref()]).flatten().any(|state| {
                state
                    .terminated
                    .as_ref()
                    .and_then(|t| t.message.as_deref())
                    .is_some_and(|m| m.trim() == holder.nonce)
            });
        if over {
            tracing::info!(holder = %holder.pod, "its container is terminated");
            self.memory.terminated.clone_from(&holder.nonce);
        }
        over
    }

    /// Writes the server's files for this role; `true`: they changed.
    pub fn write_files(
        &mut self,
        config: &AgentConfig,
        upstream: &str,
        record: Option<&Record>,
    ) -> anyhow::Result<bool> {
        let room = self.disk.known();
        let instance = Instance {
            pod: self.identity.holder.pod.clone(),
            upstream: upstream.into(),
            passfile: Files::passfile().display().to_string(),
            synchronous: record.map(|r| r.synchronous.clone()).unwrap_or_default(),
            confirmations: record.map_or(0, |r| r.confirmations),
            at_least: self.memory.at_least.clone(),
            read_only: room.stage == VolumeStage::Full,
            volume_bytes: room.steady_capacity,
        };
        let changed = Files::write(config, &instance)?;
        self.memory.written = config.hash();
        Ok(changed)
    }

    /// As `write_files`, and the server reads them if it runs.
    pub fn configure(
        &mut self,
        config: &AgentConfig,
        upstream: &str,
        record: Option<&Record>,
    ) -> anyhow::Result<()> {
        if self.write_files(config, upstream, record)? && self.postgres.running() == Running::Yes {
            self.postgres.reload();
            self.memory.looks = 0;
        } else if self.memory.looks >= READ {
            self.memory.hash.clone_from(&self.memory.written);
        }
        Ok(())
    }

    /// Starts the server with files for this role.
    pub async fn start(
        &mut self,
        config: &AgentConfig,
        upstream: &str,
        record: Option<&Record>,
        standby: bool,
    ) -> anyhow::Result<()> {
        // Recovery comes first, and on a full volume it needs what is held back.
        self.disk.look(true).await;
        // Kept until the next start: changed under a running server they would ask for a restart.
        self.memory.at_least = match standby {
            true => super::postgres::settings_of_the_wal(&self.postgres.data()).await?,
            false => Default::default(),
        };
        self.write_files(config, upstream, record)?;
        self.memory.hash.clone_from(&self.memory.written);
        self.memory.looks = READ;
        self.memory.obeys = None;
        self.memory.starting = Some(Instant::now());
        self.memory.began = self.memory.starting;
        self.memory.starts = self.memory.starts.saturating_add(1);
        self.keeper.healthy_for(Duration::from_secs(2));
        self.postgres.start(standby)
    }

    async fn act(
        &mut self,
        config: &AgentConfig,
        view: &View,
        look: Option<Look>,
        action: Action,
    ) -> anyhow::Result<()> {
        if !matches!(action, Action::Lead) {
            self.memory.led = None;
            self.memory.lead_since = None;
        }
        if self.postgres.running() == Running::Died {
            // It ended since the turn began: the next one makes sure that nothing of it is left before anything is started.
            self.memory.hurry = true;
            return Ok(());
        }
        let begins =
            matches!(action, Action::Initialise | Action::Lead | Action::Follow(_) | Action::StandAlone);
        if begins
            && view.server == Server::Down
            && let Some(words) = self.held()
        {
            return self.tell(config, None, "", &words).await;
        }
        match action {
            Action::Wait(what) => self.tell(config, look.as_ref(), &what, "").await,
            Action::Poll => self.tell(config, look.as_ref(), "asking the other instances", "").await,
            Action::Fence => {
                fence::kill_everything();
                self.postgres.collect().await;
                self.session = None;
                tracing::error!(
                    "this server accepted writes without holding the Lease: everything was killed"
                );
                Ok(())
            }
            Action::Refuse(why) => {
                self.postgres.stop(STOP_LIMIT).await;
                self.tell(config, None, "", &why).await
            }
            Action::Take(record) => {
                tracing::info!(term = record.term, timeline = record.timeline, "taking the Lease");
                let previous = self.memory.decided_on.clone();
                self.keeper.healthy_for(START_LIMIT);
                self.takes_over(view.lease.as_ref(), view.holder_terminated);
                self.keeper.take(config, record, previous).await.context("the Lease was not to be had")?;
                self.memory.hurry = true;
                Ok(())
            }
            Action::Release => self.keeper.release(None).await,
            Action::Initialise => {
                self.adopt_lease(config, view).await?;
                self.initialise(config).await
            }
            Action::Lead => {
                self.adopt_lease(config, view).await?;
                self.lead(config, look).await
            }
            Action::Follow(holder) => {
                self.gives_way();
                self.follow(config, view, look, &holder).await
            }
            Action::StandAlone => {
                self.start(config, "", None, true).await?;
                self.tell(config, None, "replaying its own WAL", "").await
            }
        }
    }

    /// The Lease names this member, but the keeper does not know: an answer got lost. From here on it is renewed.
    async fn adopt_lease(&self, config: &AgentConfig, view: &View) -> anyhow::Result<()> {
        if self.keeper.held().is_some() {
            return Ok(());
        }
        let record = view.lease.clone().context("no Lease to go on with")?;
        let previous = self.memory.decided_on.clone();
        self.keeper.healthy_for(START_LIMIT);
        self.keeper.take(config, record, previous).await.context("the Lease was not to be had again")
    }

    async fn initialise(&mut self, config: &AgentConfig) -> anyhow::Result<()> {
        self.tell(config, None, "initialising", "").await?;
        let needs = self.disk.look(false).await.volume.initdb_needs();
        self.room_for("initdb", needs)?;
        let mut beat = tokio::time::interval(Duration::from_secs(1));
        let result = {
            let keeper = self.keeper.clone();
            let work = self.postgres.initialise(config);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    _ = beat.tick() => keeper.healthy_for(Duration::from_secs(5)),
                }
            }
        };
        if let Err(error) = result {
            return Err(self.ended(error).await);
        }
        let system_identifier = super::postgres::system_identifier(&self.postgres.data()).await?;
        let state = State {
            data_set: config.data_set.clone(),
            system_identifier,
            history: config.history.clone(),
            unled: false,
            member: self.identity.holder.pod.clone(),
        };
        state.store(&self.volume)?;
        tracing::info!(system_identifier = %state.system_identifier, "initialised");
        // Straight on: the next turn would only find the same.
        let record = self.keeper.held();
        self.start(config, "", record.as_ref(), false).await
    }

    /// Publishes what this member does.
    pub async fn tell(
        &mut self,
        config: &AgentConfig,
        look: Option<&Look>,
        doing: &str,
        error: &str,
    ) -> anyhow::Result<()> {
        let report = self.report(config, look, doing, error);
        self.shared.publish(report);
        Ok(())
    }

    /// The report of this turn.
    pub fn report(
        &self,
        config: &AgentConfig,
        look: Option<&Look>,
        doing: &str,
        error: &str,
    ) -> InstanceReport {
        let state = State::load(&self.volume).ok().flatten().unwrap_or_default();
        let mut report = InstanceReport {
            doing: doing.into(),
            error: error.into(),
            server_version: self.memory.version.clone(),
            system_identifier: state.system_identifier,
            data_set: state.data_set,
            history: config.history.clone(),
            config_hash: self.memory.hash.clone(),
            archive: self.archiver.report(),
            ..InstanceReport::default()
        };
        let full = self.disk_full(look);
        if let Some(look) = look {
            report.timeline = look.timeline;
            report.lsn = look.flushed.to_string();
            report.lag_bytes = look.lag_bytes;
            report.pending_restart = look.pending_restart;
            report.pages = Some(PagesReport {
                checksums: look.checksum_failures.is_some(),
                failures: look.checksum_failures.unwrap_or_default(),
            });
            report.role = if look.recovering { Role::Replica } else { Role::Primary };
            let lag_limit = f64::from(config.max_replica_lag_seconds);
            report.ready = doing.is_empty()
                && error.is_empty()
                // A full standby that keeps up is as good to read from as ever; a full primary does not do what it is for.
                && if look.recovering { look.streaming && look.lag_seconds <= lag_limit } else { full.is_none() };
        }
        if report.error.is_empty() {
            report.error = full.unwrap_or_default();
        }
        report
    }

    /// The end of the container: withdraw, stop, archive the tail, give the Lease back, in this order.
    pub async fn end(&mut self) {
        let config = self.config.borrow().clone();
        let held = self.keeper.held();
        let led = held.is_some();
        let mut report = self.shared.report();
        let me = &self.identity.holder.pod;
        let successor = held.and_then(|record| successor("any", me, &record, &report.streaming).ok()?);
        report.ready = false;
        report.doing = "stopping".into();
        self.shared.publish(report);
        self.archiver.close();
        if led {
            // Bounded and best effort: the next primary overwrites it in any case.
            let withdraw = super::endpoints::withdraw(&self.client, &config, &self.identity.address);
            if let Ok(Err(error)) = timeout(Duration::from_secs(2), withdraw).await {
                tracing::warn!(%error, "withdrawing from the Service");
            }
        }
        let (alive, clean) = self.shut_down(STOP_LIMIT).await;
        let hand_over = match successor.filter(|_| clean) {
            Some(to) => self.handed_over(to, false).await,
            None => None,
        };
        if let Some(HandOver { to, lsn, .. }) = &hand_over {
            tracing::info!(%to, %lsn, "handing over");
        }
        if led && let Err(error) = self.keeper.release(hand_over).await {
            tracing::warn!(error = format!("{error:#}"), "releasing the Lease: others wait for its TTL");
        }
        let tail = self.archiver.drain(Duration::from_secs(60)).await;
        alive.abort();
        tracing::info!(clean, tail, "ended");
    }
}

/// Connection settings towards the pod that leads.
pub fn upstream(config: &AgentConfig, pod: &str) -> String {
    names::pod_host(&config.database, &config.namespace, pod)
}
