//! An instance: PID 1 of a database pod.
//!
//! [`run`] starts the parts and then loops: observe, decide (`holdfast_postgresql::failover::decide`), act. The parts:
//! `lease` keeps or loses the Lease and fences, `postgres` is the server as a process, `archiver` moves WAL,
//! `disk` measures the volume and holds room back, `guard` keeps a full one from ending the server,
//! `peers` answers other agents, `vote` says what and keeps promises, `switchover` ends a primary in good order, `endpoints` points the Service, `report` and `http` tell others, with
//! `metrics`, `statistics` and `takeover`.

pub mod archiver;
mod clock;
mod disk;
mod endpoints;
mod fence;
pub mod files;
mod follow;
mod fork;
mod guard;
mod http;
mod lead;
mod lease;
mod member;
mod metrics;
mod peers;
mod postgres;
mod report;
mod roles;
mod shared;
mod sql;
mod statistics;
mod switchover;
mod takeover;
mod unnoticed;
mod vote;
mod watches;

use crate::state::State;
use anyhow::Context;
use holdfast_core::wire::{self, AgentConfig};
use holdfast_postgresql::failover::Holder;
use member::Member;
use nix::fcntl::{Flock, FlockArg};
use postgres::Children;
use shared::Shared;
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
};

/// This pod, from the downward API.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Pod, uid and the nonce of this incarnation.
    pub holder: Holder,
    /// Address of the pod.
    pub address: String,
}

fn variable(name: &str) -> anyhow::Result<String> {
    std::env::var(name).with_context(|| format!("environment variable {name} is not set"))
}

fn identity() -> anyhow::Result<Identity> {
    let mut bytes = [0u8; 8];
    getrandom::fill(&mut bytes).map_err(|e| anyhow::anyhow!("no randomness: {e}"))?;
    let nonce: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    Ok(Identity {
        holder: Holder { pod: variable("POD_NAME")?, uid: variable("POD_UID")?, nonce },
        address: variable("POD_IP")?,
    })
}

/// Takes the volume for this container alone, across PID namespaces: the pod's predecessor may still be stopping after a
/// forced deletion, and PostgreSQL's own lock file cannot see processes of another container.
async fn lock_volume(volume: &Path) -> anyhow::Result<Flock<fs::File>> {
    let folder = volume.join("agent");
    fs::create_dir_all(&folder).with_context(|| format!("{} cannot be written", folder.display()))?;
    let mut file =
        fs::OpenOptions::new().create(true).truncate(false).write(true).open(folder.join("lock"))?;
    let mut told = false;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::errno::Errno::EWOULDBLOCK)) => {
                if !told {
                    tracing::warn!("another container still uses this volume: waiting for its end");
                    told = true;
                }
                file = back;
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err((_, error)) => return Err(error).context("locking the volume"),
        }
    }
}

/// Reads the configuration as it was mounted.
fn mounted_configuration() -> anyhow::Result<AgentConfig> {
    let path = Path::new(wire::CONFIG_FOLDER).join("agent.json");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// Runs the instance until SIGTERM, or until a part of it ends, which ends the container.
pub async fn run() -> anyhow::Result<()> {
    // First of all, for whoever asks whether this incarnation is really over.
    let identity = identity()?;
    if let Err(error) = fs::write("/dev/termination-log", &identity.holder.nonce) {
        tracing::warn!(%error, "the termination message cannot be written: a takeover will wait for the whole TTL");
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let volume = PathBuf::from(wire::VOLUME_FOLDER);
    let config = mounted_configuration()?;
    let shared = Shared::default();
    shared.beat();
    let metrics = Arc::new(metrics::Metrics::new(&volume)?);
    let counters = metrics.counters.clone();
    let probes = tokio::spawn(http::serve(shared.clone(), metrics));
    let _lock = tokio::select! {
        lock = lock_volume(&volume) => lock?,
        _ = terminate.recv() => return Ok(()),
    };
    let state = match State::begin(&volume, &identity.holder.pod) {
        Err(error) if guard::lacks_room(&error) => {
            tracing::warn!(error = format!("{error:#}"), "disk full: what is held back is given free");
            disk::release(&volume)?;
            State::begin(&volume, &identity.holder.pod)?
        }
        other => other?,
    };
    tracing::info!(pod = %identity.holder.pod, nonce = %identity.holder.nonce, data = ?state, "begins");

    let promised = vote::Promised::load(&volume)?;
    let segment = u64::try_from(config.wal_segment_size_mb).unwrap_or(16) << 20;
    let disk = disk::Disk::start(&volume, segment, shared.clone())?;
    disk.look(false).await;
    let children = Children::default();
    let reaper = tokio::spawn(reap(children.clone()));
    let client = holdfast_runtime::client::connect().await?;
    let (config_sender, config) = tokio::sync::watch::channel(config);
    let (lease_sender, lease) = tokio::sync::watch::channel(watches::SeenLease::default());
    let names = config.borrow().clone();
    let watching = tokio::spawn(watches::run(client.clone(), names.clone(), config_sender, lease_sender));
    let archiver = archiver::Archiver::new(&volume, config.clone());
    if let Some(state) = &state {
        archiver.know(&state.system_identifier, false);
    }
    let archiving = tokio::spawn(archiver.clone().serve());
    let (calls, asked) = mpsc::channel(16);
    let answering = tokio::spawn(peers::serve(calls));
    let reporting = tokio::spawn(report::run(
        client.clone(),
        names.namespace.clone(),
        identity.holder.clone(),
        shared.clone(),
    ));

    let mut member = Member {
        identity,
        client,
        config,
        lease,
        asked,
        keeper: lease::Keeper::start()?,
        postgres: postgres::Postgres::new(&volume, children),
        disk,
        archiver,
        shared,
        counters,
        volume,
        session: None,
        memory: member::Memory { promised, ..member::Memory::default() },
    };
    let result = tokio::select! {
        () = member.live() => Ok(()),
        _ = terminate.recv() => { tracing::info!("told to end"); Ok(()) }
        _ = interrupt.recv() => Ok(()),
        ended = probes => Err(anyhow::anyhow!("the probes' server ended: {ended:?}")),
        ended = reaper => Err(anyhow::anyhow!("the reaper ended: {ended:?}")),
        ended = watching => Err(anyhow::anyhow!("the watches ended: {ended:?}")),
        ended = archiving => Err(anyhow::anyhow!("the archiver ended: {ended:?}")),
        ended = answering => Err(anyhow::anyhow!("the peers' server ended: {ended:?}")),
        ended = reporting => Err(anyhow::anyhow!("reporting ended: {ended:?}")),
    };
    // The parts must go on while the server stops: the archiver serves its last requests, the keeper renews.
    member.end().await;
    result
}

/// Collects orphans. Backends of a dead postmaster become children of PID 1.
async fn reap(children: Children) {
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        loop {
            // The lock is held over question and answer: no child of ours may be born unlisted in between.
            let Ok(own) = children.lock() else { return };
            if !fence::reap_one(&own) {
                break;
            }
        }
    }
}
