//! The life of an operator process: from the client to the last released Lease. Reads the environment and signals.

use crate::{
    client, crds,
    events::Events,
    health::{self, Health, Role},
    leader::Elector,
    metrics::Metrics,
    telemetry,
};
use anyhow::{Context, anyhow};
use k8s_openapi::jiff::Timestamp;
use kube::{
    Api, Client, Resource,
    core::NamespaceResourceScope,
    runtime::{Controller, controller::Action, watcher},
};
use serde::de::DeserializeOwned;
use std::{
    fmt::Debug,
    future::Future,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
};

/// How long running reconciles may take to end after SIGTERM: less than a pod's usual 30 s of grace.
const GRACE: Duration = Duration::from_secs(20);

/// What tells one operator from another.
pub struct Setup {
    /// Its name: of the leader Lease, in logs and events, and of the component in metrics.
    pub name: &'static str,
    /// CRDs without which it cannot work, such as `databases.holdfast.dev`.
    pub crds: &'static [&'static str],
}

/// What a controller needs of the process that it runs in.
#[derive(Clone)]
pub struct Process {
    /// The client.
    pub client: Client,
    /// The process's metrics.
    pub metrics: Arc<Metrics>,
    /// Records events.
    pub events: Events,
    /// The one namespace to watch (`WATCH_NAMESPACE`); none: all.
    pub namespace: Option<String>,
    clock: Clock,
    stop: watch::Receiver<bool>,
    failed: mpsc::UnboundedSender<String>,
    tasks: Arc<Mutex<JoinSet<()>>>,
    doubts: Arc<Notify>,
}

/// Where a process reads the time of day.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The other end of a [`Process`], in the hands of whoever runs it. Dropping it ends the background tasks at once.
pub struct Life {
    stop: watch::Sender<bool>,
    failures: mpsc::UnboundedReceiver<String>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Life {
    /// Tells the process to end: running reconciles finish, nothing new begins.
    pub fn stop(&self) {
        // Receivers may be gone; then nobody is left to be told.
        let _ = self.stop.send(true);
    }

    /// Waits until something that must run to the end has ended by itself, and says what.
    pub async fn failed(&mut self) -> String {
        match self.failures.recv().await {
            Some(what) => what,
            // No task is left that could fail.
            None => std::future::pending().await,
        }
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Process {
    /// A process named `component` whose controllers watch `namespace`, or all. [`run`] makes one of a pod's environment.
    ///
    /// Errors: none in practice; a metric registered twice.
    pub fn new(
        client: Client,
        component: &'static str,
        identity: &str,
        namespace: Option<String>,
        clock: Clock,
    ) -> Result<(Self, Life), prometheus::Error> {
        let (stop, stopping) = watch::channel(false);
        let (failed, failures) = mpsc::unbounded_channel();
        let tasks = Arc::<Mutex<JoinSet<()>>>::default();
        let process = Self {
            events: Events::new(client.clone(), component, Some(identity.into())),
            metrics: Arc::new(Metrics::new(component)?),
            client,
            namespace,
            clock,
            stop: stopping,
            failed,
            tasks: Arc::clone(&tasks),
            doubts: Arc::default(),
        };
        Ok((process, Life { stop, failures, tasks }))
    }

    /// The time of day. Decisions are handed it; only edges ask.
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Where the time of day is read, for those who read it later.
    pub fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    /// For listing and watching: all namespaces, or the one to watch.
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        match &self.namespace {
            Some(namespace) => Api::namespaced(self.client.clone(), namespace),
            None => Api::all(self.client.clone()),
        }
    }

    /// Completes when the process was told to end: start nothing new then.
    pub fn stopping(&self) -> impl Future<Output = ()> + Send + Sync + 'static {
        let mut stop = self.stop.clone();
        async move {
            // A sender that is gone means that the process ends, too.
            let _ = stop.wait_for(|stopping| *stopping).await;
        }
    }

    /// Runs a task beside the controllers. It must run until the process ends: if it ends earlier, so does the process.
    pub fn background(&self, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
        let process = self.clone();
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.spawn(async move {
            task.await;
            process.ended(&format!("background task {name}"));
        });
    }

    /// Counts a failed watch, and has it looked at whether the CRDs are still there.
    pub fn watch_failed(&self, controller: &str) {
        self.metrics.watch_failed(controller);
        self.doubts.notify_one();
    }

    /// Says that something which must run until the end has ended.
    pub(crate) fn ended(&self, what: &str) {
        if !*self.stop.borrow() {
            // The receiver is gone only when the process is ending anyway.
            let _ = self.failed.send(format!("{what} ended by itself"));
        }
    }
}

/// Whether a watch ended with 410 Gone, which is how each of them may end at any time. Only as an event: after that, and only
/// then, kube-runtime lists anew.
pub fn expired(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchError(status) if status.code == 410)
}

/// How controllers watch: the server ends a watch after a minute, so that one whose connection died without a word
/// (a lost node, a dropped NAT entry) is noticed within about that time instead of five minutes.
pub fn watching() -> watcher::Config {
    watcher::Config::default().timeout(60)
}

/// Runs an operator: logs, client, HTTP server on 8080, waiting for its CRDs, the leader Lease `<name>` in
/// `POD_NAMESPACE`, then `controllers` until SIGTERM (running reconciles finish, the Lease is released, exit 0).
///
/// Errors: no client, no port, the Lease was lost, or something that must run for ever has ended. `main` returns them,
/// so the process ends and is started anew. A panic anywhere ends the process.
pub async fn run<F, Fut>(setup: Setup, controllers: F) -> anyhow::Result<()>
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = ()>,
{
    telemetry::init(setup.name);
    end_on_panic();
    let result = live(&setup, controllers).await;
    if let Err(error) = &result {
        tracing::error!(error = format!("{error:#}"), "ending");
    }
    result
}

async fn live<F, Fut>(setup: &Setup, controllers: F) -> anyhow::Result<()>
where
    F: FnOnce(Process) -> Fut,
    Fut: Future<Output = ()>,
{
    let mut terminate = signal(SignalKind::terminate()).context("cannot handle SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot handle SIGINT")?;
    let client = client::connect().await?;
    let health = Arc::new(Health::default());
    let identity = identity();
    let namespace = setting("WATCH_NAMESPACE");
    let clock: Clock = Arc::new(Timestamp::now);
    let (process, mut life) = Process::new(client.clone(), setup.name, &identity, namespace, clock)
        .context("cannot register the metrics")?;
    let metrics = Arc::clone(&process.metrics);
    let listener = health::listen().await?;
    process.background("http server", health::serve(listener, Arc::clone(&health), Arc::clone(&metrics)));
    process.background(
        "crd check",
        crds::watch(
            client.clone(),
            setup.crds,
            Arc::clone(&health),
            Arc::clone(&metrics),
            Arc::clone(&process.doubts),
        ),
    );

    let mut told = pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });

    // In its own namespace; outside of a pod, in the one that the kubeconfig names.
    let namespace = setting("POD_NAMESPACE").unwrap_or_else(|| client.default_namespace().to_string());
    let elector = Elector::new(Api::namespaced(client.clone(), &namespace), setup.name, &identity);
    let waiting = async {
        health.crds_present().await;
        elector.acquire(&health).await
    };
    let mut held = tokio::select! {
        held = waiting => held,
        () = &mut told => {
            tracing::info!("stopping before leading");
            return Ok(());
        }
        what = life.failed() => return Err(anyhow!(what)),
    };
    health.role(Role::Leading);
    metrics.leading(true);

    // Boxed, so that it can be dropped, with every reconcile in it, before the Lease is released.
    let mut work = Box::pin(controllers(process.clone()));
    tokio::select! {
        () = &mut work => {
            elector.release(held).await;
            return Err(anyhow!("the controllers ended by themselves"));
        }
        lost = elector.hold(&mut held) => {
            // At once and without another await: whoever takes over counts on it.
            tracing::error!(error = %lost, "ending");
            std::process::exit(1);
        }
        what = life.failed() => {
            drop(work);
            elector.release(held).await;
            return Err(anyhow!(what));
        }
        () = &mut told => {}
    }

    tracing::info!("stopping: running reconciles may finish");
    health.role(Role::Stopping);
    life.stop();
    tokio::select! {
        () = &mut work => {}
        lost = elector.hold(&mut held) => {
            tracing::error!(error = %lost, "ending");
            std::process::exit(1);
        }
        () = tokio::time::sleep(GRACE) => {
            tracing::warn!("reconciles did not end within {} s; cut off", GRACE.as_secs());
        }
    }
    drop(work);
    metrics.leading(false);
    elector.release(held).await;
    Ok(())
}

/// One controller's loop: 60 s for a reconcile, metrics under `name`, per-object exponential backoff with jitter
/// (1 s doubling to 5 min, reset by success), logs, at most 32 objects at once (sets the controller's `Config`). Returns
/// when the process is told to end and running reconciles are over.
///
/// The watch deserializes `K` itself. An object that `K` cannot hold would stop the watch of all; the CRDs' schemas,
/// which are generated from the very same types, keep such objects out of the API server.
pub async fn drive<K, C, E, F, Fut>(
    controller: Controller<K>,
    name: &'static str,
    process: &Process,
    context: Arc<C>,
    reconcile: F,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    C: Send + Sync + 'static,
    E: std::error::Error + Send + Sync + 'static,
    F: Fn(Arc<K>, Arc<C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
{
    crate::controller::drive(controller, name, process, context, reconcile).await;
}

/// Who this process is to other replicas. A pod's name is enough: a pod runs once, and after a restart of its container
/// the old process is gone for sure, so the Lease may be taken up again without waiting.
fn identity() -> String {
    setting("POD_NAME").unwrap_or_else(|| {
        let host = setting("HOSTNAME").unwrap_or_else(|| "local".into());
        format!("{host}-{}", std::process::id())
    })
}

/// An environment variable that is set and not empty.
pub fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// A panic in a spawned task would otherwise leave a process that looks alive and does not work.
fn end_on_panic() {
    std::panic::set_hook(Box::new(|info| {
        tracing::error!(panic = %info, "a bug: the process ends and is started anew");
        std::process::exit(101);
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_watch_that_was_too_old_is_no_failure() {
        let said = |code| {
            Box::new(kube::core::Status { code, reason: "any".into(), ..kube::core::Status::default() })
        };
        assert!(expired(&watcher::Error::WatchError(said(410))));
        // kube-runtime goes on from the same revision after this, so it may never end, and has to be seen.
        assert!(!expired(&watcher::Error::WatchStartFailed(kube::Error::Api(said(410)))));
        assert!(!expired(&watcher::Error::WatchError(said(500))));
        assert!(!expired(&watcher::Error::WatchStartFailed(kube::Error::Api(said(403)))));
        assert!(
            !expired(&watcher::Error::InitialListFailed(kube::Error::Api(said(410)))),
            "that is no watch"
        );
        assert!(!expired(&watcher::Error::NoResourceVersion));
    }
}
