//! Does what Kubernetes' controllers, kubelets and agents would do about StatefulSets and Jobs: pods and volumes appear at
//! once, instances report that they are well, workers succeed.

use crate::bench::seed;
use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, future::try_join_all};
use holdfast_core::{
    names,
    report::{ArchiveReport, InstanceReport, Role, VolumeReport, VolumeStage},
    wire::{AgentConfig, WorkerResult},
};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        apps::v1::StatefulSet,
        batch::v1::Job,
        coordination::v1::Lease,
        core::v1::{ConfigMap, PersistentVolumeClaim, Pod},
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

/// Revision of every pod: templates do not change here.
const REVISION: &str = "bench-7c9d5f6b8";

/// What is known of a Database.
#[derive(Default)]
struct Known {
    /// What its agents are told.
    told: Option<AgentConfig>,
    /// Its data set and history, once its pods are being made.
    running: Option<(String, String)>,
    /// Its pods are there.
    complete: bool,
    /// Hash of the configuration that the pods reported.
    reported: String,
}

type Shared = Arc<tokio::sync::Mutex<Known>>;

struct World {
    client: Client,
    databases: Mutex<HashMap<(String, String), Shared>>,
}

/// Works until it is dropped; ends only with an error.
pub async fn run(client: Client) -> Result<()> {
    let world = World { client, databases: Mutex::default() };
    tokio::try_join!(
        world.watch::<StatefulSet, _>(|event| world.stateful_set(event)),
        world.watch::<ConfigMap, _>(|event| world.config_map(event)),
        world.watch::<Job, _>(|event| world.job(event)),
    )?;
    Ok(())
}

impl World {
    fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    fn known(&self, namespace: &str, database: &str) -> Shared {
        let mut all = self.databases.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(all.entry((namespace.into(), database.into())).or_default())
    }

    async fn watch<K, Fut>(&self, work: impl Fn(Event<K>) -> Fut) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + Debug
            + Send
            + 'static,
        Fut: Future<Output = Result<()>>,
    {
        let config = watcher::Config::default().labels("app.kubernetes.io/managed-by=holdfast");
        let events = watcher(Api::<K>::all(self.client.clone()), config).default_backoff();
        // A watch that breaks is begun again; what this program cannot write is an error.
        events
            .filter_map(|event| std::future::ready(event.ok()))
            .map(Ok)
            .try_for_each_concurrent(seed::AT_ONCE, work)
            .await
    }

    /// The StatefulSet controller's work, and the kubelets'.
    async fn stateful_set(&self, event: Event<StatefulSet>) -> Result<()> {
        let (Event::Apply(set) | Event::InitApply(set)) = event else { return Ok(()) };
        let seen = set.status.as_ref().and_then(|s| s.observed_generation);
        if seen >= set.metadata.generation || set.metadata.deletion_timestamp.is_some() {
            return Ok(());
        }
        let (namespace, name) = (set.namespace().unwrap_or_default(), set.name_any());
        let spec = set.spec.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let template =
            spec.volume_claim_templates.iter().flatten().next().context("a StatefulSet without volumes")?;
        let data_set = template.metadata.name.clone().unwrap_or_default();
        let history = template.labels().get(names::LABEL_HISTORY).cloned().unwrap_or_default();
        let known = self.known(&namespace, &name);
        let mut known = known.lock().await;
        if known.told.is_none() {
            let (configs, config) = (self.api::<ConfigMap>(&namespace), names::config_map(&name));
            let config = seed::patiently(|| configs.get(&config)).await?;
            known.told = told(&config);
        }
        if !known.complete {
            try_join_all((0..replicas).map(|ordinal| self.volume(&namespace, &name, template, ordinal)))
                .await?;
            known.running = Some((data_set.clone(), history));
            known.reported = hash(&known);
            self.lease(&namespace, &name, &data_set, replicas).await?;
            let reports = (0..replicas).map(|ordinal| (ordinal, report(&known, &name, ordinal, replicas)));
            try_join_all(reports.map(|(ordinal, report)| self.pod(&set, &data_set, ordinal, report))).await?;
            known.complete = true;
        }
        let status = json!({"status": {"observedGeneration": set.metadata.generation, "replicas": replicas,
            "readyReplicas": replicas, "availableReplicas": replicas, "currentReplicas": replicas,
            "updatedReplicas": replicas, "currentRevision": REVISION, "updateRevision": REVISION}});
        self.status::<StatefulSet>(&namespace, &name, &status).await?;
        self.retell(&namespace, &name, &mut known).await
    }

    async fn volume(
        &self,
        namespace: &str,
        database: &str,
        template: &PersistentVolumeClaim,
        ordinal: i32,
    ) -> Result<()> {
        let mut claim = template.clone();
        claim.status = None;
        let name = names::claim(&template.name_any(), database, ordinal);
        claim.metadata.name = Some(name.clone());
        self.create(namespace, &claim).await?;
        let size = template.spec.as_ref().and_then(|s| s.resources.as_ref()?.requests.clone());
        let status =
            json!({"status": {"phase": "Bound", "accessModes": ["ReadWriteOnce"], "capacity": size}});
        self.status::<PersistentVolumeClaim>(namespace, &name, &status).await
    }

    async fn pod(
        &self,
        set: &StatefulSet,
        data_set: &str,
        ordinal: i32,
        report: InstanceReport,
    ) -> Result<()> {
        let (namespace, database) = (set.namespace().unwrap_or_default(), set.name_any());
        let name = names::pod(&database, ordinal);
        let template = set.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut spec = template.spec.unwrap_or_default();
        spec.hostname = Some(name.clone());
        spec.subdomain = Some(names::service_pods(&database));
        spec.node_name = Some(format!("node{}", ordinal + 1));
        let claim = names::claim(data_set, &database, ordinal);
        let volume = json!({"name": data_set, "persistentVolumeClaim": {"claimName": claim}});
        spec.volumes.get_or_insert_default().insert(0, serde_json::from_value(volume)?);
        let meta = template.metadata.unwrap_or_default();
        let mut labels = meta.labels.unwrap_or_default();
        labels.extend([
            ("controller-revision-hash".to_string(), REVISION.to_string()),
            ("apps.kubernetes.io/pod-index".to_string(), ordinal.to_string()),
            ("statefulset.kubernetes.io/pod-name".to_string(), name.clone()),
            (names::LABEL_ROLE.to_string(), if ordinal == 0 { "primary" } else { "replica" }.to_string()),
        ]);
        let mut annotations = meta.annotations.unwrap_or_default();
        annotations.insert(names::ANNOTATION_REPORT.into(), serde_json::to_string(&report)?);
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": name, "labels": labels,
            "annotations": annotations, "ownerReferences": [set.controller_owner_ref(&())]}, "spec": spec}))?;
        self.create(&namespace, &pod).await?;
        self.status::<Pod>(&namespace, &name, &json!({"status": running(&pod)})).await
    }

    /// The primary's agent takes its Lease.
    async fn lease(&self, namespace: &str, database: &str, data_set: &str, replicas: i32) -> Result<()> {
        let standbys: Vec<String> = (1..replicas).map(|ordinal| names::pod(database, ordinal)).collect();
        let primary = names::pod(database, 0);
        let identifier = seed::system_identifier(database);
        let record = json!({"holder": {"pod": primary, "uid": "6f1c3a52-1f63-4f7e-8a3b-2f4f7d3a9c10", "nonce": "a81f33c04c9be2d7"},
            "lastHolder": primary, "term": 1, "timeline": 1, "dataSet": data_set, "systemIdentifier": identifier,
            "synchronous": standbys, "confirmations": i32::from(replicas > 1)});
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
        let mut labels = names::labels(database);
        labels.insert(names::LABEL_DATA_SET.into(), data_set.into());
        labels.insert(names::LABEL_SYSTEM_IDENTIFIER.into(), identifier);
        let lease: Lease = serde_json::from_value(
            json!({"metadata": {"name": names::lease_primary(database), "labels": labels,
                "annotations": {names::ANNOTATION_RECORD: record.to_string()}},
            "spec": {"holderIdentity": primary, "leaseDurationSeconds": 6, "acquireTime": now, "renewTime": now,
                "leaseTransitions": 0}}),
        )?;
        self.create(namespace, &lease).await
    }

    /// Agents take up what they are told, and report it.
    async fn config_map(&self, event: Event<ConfigMap>) -> Result<()> {
        let (Event::Apply(config) | Event::InitApply(config)) = event else { return Ok(()) };
        let Some(database) = config.labels().get(names::LABEL_DATABASE).cloned() else { return Ok(()) };
        let Some(told) = told(&config) else { return Ok(()) };
        let namespace = config.namespace().unwrap_or_default();
        let known = self.known(&namespace, &database);
        let mut known = known.lock().await;
        known.told = Some(told);
        self.retell(&namespace, &database, &mut known).await
    }

    async fn retell(&self, namespace: &str, database: &str, known: &mut Known) -> Result<()> {
        let hash = hash(known);
        if !known.complete || known.reported == hash {
            return Ok(());
        }
        known.reported = hash;
        let replicas = known.told.as_ref().map_or(0, |t| t.instances);
        let pods = self.api::<Pod>(namespace);
        try_join_all((0..replicas).map(|ordinal| {
            let (pods, report) = (pods.clone(), report(known, database, ordinal, replicas));
            async move {
                let report = serde_json::to_string(&report)?;
                let body = json!({"metadata": {"annotations": {names::ANNOTATION_REPORT: report}}});
                let name = names::pod(database, ordinal);
                let (parameters, body) = (PatchParams::default(), Patch::Merge(&body));
                seed::patiently(|| pods.patch(&name, &parameters, &body)).await?;
                anyhow::Ok(())
            }
        }))
        .await?;
        Ok(())
    }

    /// The Job controller's work, and the worker's: every one succeeds.
    async fn job(&self, event: Event<Job>) -> Result<()> {
        let job = match event {
            Event::Apply(job) | Event::InitApply(job) => job,
            Event::Delete(job) => return self.remove_pods(&job).await,
            Event::Init | Event::InitDone => return Ok(()),
        };
        if job.status.as_ref().is_some_and(|s| s.completion_time.is_some())
            || job.metadata.deletion_timestamp.is_some()
        {
            return Ok(());
        }
        let (namespace, name) = (job.namespace().unwrap_or_default(), job.name_any());
        let result = match job.labels().get("holdfast.dev/purpose").map(String::as_str) {
            Some("probe") => WorkerResult::Probed,
            Some("retention") => WorkerResult::Retained {
                kept: 1,
                expired: Vec::new(),
                wal_removed: 0,
                earliest: String::new(),
                more: false,
            },
            other => anyhow::bail!("nothing here should have made Job {namespace}/{name} for {other:?}"),
        };
        let template = job.spec.as_ref().map(|s| s.template.clone()).unwrap_or_default();
        let mut labels = template.metadata.and_then(|m| m.labels).unwrap_or_default();
        labels.insert("batch.kubernetes.io/job-name".into(), name.clone());
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": format!("{name}-worker"), "labels": labels,
            "ownerReferences": [job.controller_owner_ref(&())]}, "spec": template.spec}))?;
        self.create(&namespace, &pod).await?;
        let message = serde_json::to_string(&result)?;
        let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let ended = json!({"status": {"phase": "Succeeded", "containerStatuses": [{"name": "worker", "image": "agent", "imageID": "",
            "ready": false, "restartCount": 0, "state": {"terminated": {"exitCode": 0, "reason": "Completed", "message": message,
                "startedAt": now, "finishedAt": now}}}]}});
        self.status::<Pod>(&namespace, &pod.name_any(), &ended).await?;
        let over = |kind: &str| json!({"type": kind, "status": "True", "lastProbeTime": now, "lastTransitionTime": now});
        let status = json!({"status": {"startTime": now, "completionTime": now, "succeeded": 1, "ready": 0,
            "conditions": [over("SuccessCriteriaMet"), over("Complete")]}});
        self.status::<Job>(&namespace, &name, &status).await
    }

    /// The garbage collector's work.
    async fn remove_pods(&self, job: &Job) -> Result<()> {
        let pods = self.api::<Pod>(&job.namespace().unwrap_or_default());
        let of_job =
            ListParams::default().labels(&format!("batch.kubernetes.io/job-name={}", job.name_any()));
        for pod in seed::patiently(|| pods.list(&of_job)).await?.items {
            let now = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            let name = pod.name_any();
            absent(seed::patiently(|| pods.delete(&name, &now)).await.map(drop))?;
        }
        Ok(())
    }

    async fn create<K>(&self, namespace: &str, object: &K) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + serde::Serialize
            + DeserializeOwned
            + Debug,
    {
        seed::create(&self.api::<K>(namespace), object).await.map(drop)
    }

    /// Writes a status. An object that went meanwhile needs none.
    async fn status<K>(&self, namespace: &str, name: &str, body: &Value) -> Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
    {
        let api = self.api::<K>(namespace);
        let (parameters, body) = (PatchParams::default(), Patch::Merge(body));
        let written = seed::patiently(|| api.patch_status(name, &parameters, &body)).await;
        absent(written.map(drop)).with_context(|| format!("writing the status of {} {name}", K::kind(&())))
    }
}

fn absent(result: kube::Result<()>) -> Result<()> {
    match result {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}

fn told(config: &ConfigMap) -> Option<AgentConfig> {
    serde_json::from_str(config.data.as_ref()?.get("agent.json")?).ok()
}

fn hash(known: &Known) -> String {
    known.told.as_ref().map(AgentConfig::hash).unwrap_or_default()
}

/// What a healthy instance says.
fn report(known: &Known, database: &str, ordinal: i32, replicas: i32) -> InstanceReport {
    let (data_set, history) = known.running.clone().unwrap_or_default();
    let primary = ordinal == 0;
    let standbys: Vec<String> =
        (1..replicas).filter(|_| primary).map(|other| names::pod(database, other)).collect();
    InstanceReport {
        role: if primary { Role::Primary } else { Role::Replica },
        ready: true,
        timeline: 1,
        lsn: "2B/31A2B3C8".into(),
        system_identifier: seed::system_identifier(database),
        server_version: "17.6".into(),
        data_set,
        history,
        synchronous: standbys.clone(),
        streaming: standbys,
        config_hash: known.reported.clone(),
        archive: primary.then(|| ArchiveReport {
            last_segment: "000000010000002B00000030".into(),
            last_archived_time: "2026-11-21T09:14:02Z".into(),
            ..ArchiveReport::default()
        }),
        volume: Some(VolumeReport {
            capacity_bytes: 10 << 30,
            available_bytes: 7 << 30,
            wal_bytes: 1 << 30,
            stage: VolumeStage::Ample,
        }),
        ..InstanceReport::default()
    }
}

/// The status that a kubelet writes of a pod that runs.
fn running(pod: &Pod) -> Value {
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let condition = |kind: &str| json!({"type": kind, "status": "True", "lastTransitionTime": now, "lastProbeTime": null});
    let kinds = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"];
    let conditions: Vec<Value> = kinds.iter().map(|kind| condition(kind)).collect();
    let spec = pod.spec.clone().unwrap_or_default();
    let digest = "sha256:3f1b0b7a8c5f4f0e9f5c0a40fca0c1ff3f1b0b7a8c5f4f0e9f5c0a40fca0c1ff";
    let container = |name: &str, image: &Option<String>, state: Value| {
        let image = image.clone().unwrap_or_default();
        json!({"name": name, "image": image, "imageID": format!("{image}@{digest}"), "containerID": format!("containerd://{}", &digest[7..]),
            "ready": true, "started": true, "restartCount": 0, "state": state})
    };
    let containers: Vec<Value> = spec
        .containers
        .iter()
        .map(|c| container(&c.name, &c.image, json!({"running": {"startedAt": now}})))
        .collect();
    let ended =
        json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": now, "finishedAt": now}});
    let first: Vec<Value> =
        spec.init_containers.iter().flatten().map(|c| container(&c.name, &c.image, ended.clone())).collect();
    json!({"phase": "Running", "qosClass": "Burstable", "hostIP": "172.30.0.11", "hostIPs": [{"ip": "172.30.0.11"}],
        "podIP": "10.244.1.17", "podIPs": [{"ip": "10.244.1.17"}], "startTime": now, "conditions": conditions,
        "containerStatuses": containers, "initContainerStatuses": first})
}
