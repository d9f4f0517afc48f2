//! The provisioner: makes volumes for PersistentVolumeClaims and deletes those that are released, as the external-provisioner of
//! Kubernetes' storage group does, with its annotations, names, finalizer and events.
//!
//! Decisions are in [`plan`]; the rest reads, calls the driver at its socket, and writes.

mod claims;
mod driver;
mod events;
mod leftovers;
pub mod plan;
mod retry;
#[cfg(test)]
mod tests;
mod volumes;

use anyhow::{Context as _, anyhow};
use driver::Driver;
use events::Events;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::{
    api::{
        core::v1::{Node, PersistentVolume, PersistentVolumeClaim},
        storage::v1::{CSINode, StorageClass},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Config, Resource, ResourceExt,
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{
        WatchStreamExt, controller,
        reflector::{self, Store, store::Writer},
        utils::Backoff,
        watcher,
    },
};
use leftovers::Intents;
use retry::Retry;
use serde::de::DeserializeOwned;
use std::{
    fmt::{self, Debug},
    future::Future,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// How long a call to the API server may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// How long a connection may say nothing while an answer is due: longer than a watch lives.
const SILENCE: Duration = Duration::from_secs(90);
/// A watch ends after this many seconds and is begun anew: one whose connection died without a word is noticed.
const WATCH: u32 = 60;
/// Objects are looked at so often even when nothing seems to happen.
const RESYNC: Duration = Duration::from_secs(300);
/// Between attempts to read the kubeconfig: the cluster may be starting.
const KUBECONFIG: Duration = Duration::from_secs(1);

/// What the provisioner is told.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the API server is, and a credential that may do everything.
    pub kubeconfig: PathBuf,
    /// The socket of the driver's controller service. Beside it, in a folder `intents`, is remembered what is being made.
    pub controller: PathBuf,
    /// The driver's name.
    pub driver: String,
}

/// What both loops need.
struct Context {
    client: Client,
    /// The driver's name.
    name: String,
    /// Which provisioner this is, for people who look at a volume.
    identity: String,
    driver: Driver,
    events: Events,
    intents: Intents,
    claims: Retry,
    releases: Retry,
    classes: Store<StorageClass>,
    nodes: Store<Node>,
    csi_nodes: Store<CSINode>,
    volumes: Store<PersistentVolume>,
}

/// Provisions until it is dropped. An API server that is away is waited for.
///
/// Errors: only bugs; a watch that ended by itself.
pub async fn run(options: Options) -> anyhow::Result<()> {
    // An error only says that a TLS provider is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = connect(&options.kubeconfig).await;
    tracing::info!(driver = options.driver, "provisioning");
    provision(client, &options).await
}

async fn provision(client: Client, options: &Options) -> anyhow::Result<()> {
    let folder = options.controller.parent().unwrap_or(Path::new(".")).join("intents");
    let (classes, watch_classes) = cached(Api::<StorageClass>::all(client.clone()), "StorageClasses");
    let (nodes, watch_nodes) = cached(Api::<Node>::all(client.clone()), "Nodes");
    let (csi_nodes, watch_csi_nodes) = cached(Api::<CSINode>::all(client.clone()), "CSINodes");
    let (volumes, volumes_writer) = reflector::store();
    let (claims, claims_writer) = reflector::store();
    let context = Arc::new(Context {
        events: Events::new(client.clone(), &options.driver),
        name: options.driver.clone(),
        identity: format!("{}-{}", Timestamp::now().as_millisecond(), options.driver),
        driver: Driver::new(&options.controller),
        intents: Intents::new(folder),
        claims: Retry::default(),
        releases: Retry::default(),
        classes,
        nodes,
        csi_nodes,
        volumes: volumes.clone(),
        client: client.clone(),
    });
    let watch_volumes = watch(Api::<PersistentVolume>::all(client.clone()), volumes_writer);
    let watch_claims = watch(Api::<PersistentVolumeClaim>::all(client), claims_writer);
    let deletions = volumes::run(watch_volumes, volumes, Arc::clone(&context));
    let creations = async {
        // Nothing may be decided from half of what there is.
        let filled = tokio::try_join!(
            context.classes.wait_until_ready(),
            context.nodes.wait_until_ready(),
            context.csi_nodes.wait_until_ready(),
            context.volumes.wait_until_ready(),
        );
        if filled.is_ok() {
            claims::run(watch_claims, claims, Arc::clone(&context)).await;
        }
    };
    let ended = tokio::select! {
        what = watch_classes => what,
        what = watch_nodes => what,
        what = watch_csi_nodes => what,
        () = deletions => "the loop over PersistentVolumes",
        () = creations => "the loop over PersistentVolumeClaims",
        () = leftovers::sweep_for_ever(&context) => "the sweep",
    };
    Err(anyhow!("{ended} ended by itself"))
}

/// A client, as soon as there is a kubeconfig that can be used.
async fn connect(kubeconfig: &Path) -> Client {
    let mut said = String::new();
    loop {
        match client(kubeconfig).await {
            Ok(client) => return client,
            Err(error) => {
                let words = format!("{error:#}");
                if words != said {
                    tracing::warn!(error = words, "cannot use the kubeconfig; waiting for it");
                    said = words;
                }
                tokio::time::sleep(KUBECONFIG).await;
            }
        }
    }
}

async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).with_context(|| format!("{}", kubeconfig.display()))?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.connect_timeout = Some(DEADLINE);
    config.write_timeout = Some(DEADLINE);
    config.read_timeout = Some(SILENCE);
    // Otherwise the time that a pooled connection sat idle would count against the next answer.
    config.reset_reader_on_write = true;
    // A hidden second POST would make "already exists" ambiguous.
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

/// Pauses between attempts to watch: short, because what waits for a volume is measured, and one process is no crowd.
struct Pauses(Duration);

impl Pauses {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(3);
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(Self::LONGEST);
        Some(pause)
    }
}

impl Backoff for Pauses {
    fn reset(&mut self) {
        self.0 = Self::FIRST;
    }
}

/// A stream of watch events that also fills a cache.
fn watch<K>(
    api: Api<K>,
    writer: Writer<K>,
) -> impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    watcher(api, watcher::Config::default().timeout(WATCH))
        .backoff(Pauses(Pauses::FIRST))
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
}

/// A cache, and the task that fills it, which answers with its name if it ends.
fn cached<K>(
    api: Api<K>,
    what: &'static str,
) -> (Store<K>, impl Future<Output = &'static str> + Send + 'static)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let task = watch(api, writer).for_each(move |event| {
        if let Err(error) = event {
            tracing::warn!(what, %error, "a watch failed and is begun again");
        }
        std::future::ready(())
    });
    (store, task.map(move |()| what))
}

/// Logs what a controller says about its watch; failures of objects are said by their reconcile.
fn log<K: Debug>(
    what: &'static str,
    result: Result<K, controller::Error<std::convert::Infallible, watcher::Error>>,
) {
    match result {
        Ok(_) | Err(controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)) => {}
        Err(controller::Error::QueueError(error)) => {
            tracing::warn!(what, %error, "a watch failed and is begun again");
        }
        Err(controller::Error::RunnerError(error)) => tracing::error!(what, %error, "the runner failed"),
    }
}

/// A call to the API server failed.
#[derive(Debug)]
enum CallError {
    TooLong,
    Kube(Box<kube::Error>),
}

impl CallError {
    fn not_found(&self) -> bool {
        matches!(self, Self::Kube(error) if matches!(&**error, kube::Error::Api(s) if s.is_not_found()))
    }

    fn already_exists(&self) -> bool {
        matches!(self, Self::Kube(error) if matches!(&**error, kube::Error::Api(s) if s.is_already_exists()))
    }

    fn conflict(&self) -> bool {
        matches!(self, Self::Kube(error) if matches!(&**error, kube::Error::Api(s) if s.is_conflict()))
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => write!(f, "the API server did not answer within {} s", DEADLINE.as_secs()),
            Self::Kube(error) => match &**error {
                kube::Error::Api(status) => write!(f, "{} ({})", status.message, status.reason),
                other => write!(f, "{other}"),
            },
        }
    }
}

/// Bounds a call.
async fn call<T>(answer: impl Future<Output = kube::Result<T>>) -> Result<T, CallError> {
    match tokio::time::timeout(DEADLINE, answer).await {
        Ok(answer) => answer.map_err(|error| CallError::Kube(Box::new(error))),
        Err(_) => Err(CallError::TooLong),
    }
}
