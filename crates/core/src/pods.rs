//! Parts of pods that every operator builds alike: the agent's way in, security, the store's mounts, worker Jobs.

use crate::{
    crd::{LocalRef, store::BackupStoreSpec},
    names,
    wire::{self, WorkerJob},
};
use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{
            Capabilities, Container, EmptyDirVolumeSource, EnvVar, LocalObjectReference,
            PersistentVolumeClaimVolumeSource, PodSecurityContext, PodSpec, PodTemplateSpec,
            ResourceRequirements, SeccompProfile, SecretVolumeSource, SecurityContext, Volume, VolumeMount,
        },
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{ObjectMeta, OwnerReference},
    },
};
use std::collections::BTreeMap;

/// User and group that database pods and workers run as: `postgres` in the official Debian images.
pub const POSTGRES_UID: i64 = 999;

/// Volumes and the mounts that go with them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mounts {
    /// Volumes of the pod.
    pub volumes: Vec<Volume>,
    /// Mounts of the container.
    pub mounts: Vec<VolumeMount>,
}

impl Mounts {
    /// Adds a Secret as files.
    pub fn secret(&mut self, volume: &str, secret: &str, path: &str) {
        self.volumes.push(Volume {
            name: volume.into(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(secret.into()),
                // Group-readable through fsGroup and for nobody else: libpq refuses keys that others can read.
                default_mode: Some(0o440),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        });
        self.mount(volume, path, true);
    }

    /// Adds a folder that ends with the pod.
    pub fn scratch(&mut self, volume: &str, path: &str, in_memory: bool) {
        self.volumes.push(Volume {
            name: volume.into(),
            empty_dir: Some(EmptyDirVolumeSource {
                medium: in_memory.then(|| "Memory".to_string()),
                ..EmptyDirVolumeSource::default()
            }),
            ..Volume::default()
        });
        self.mount(volume, path, false);
    }

    /// Adds a PersistentVolumeClaim.
    pub fn claim(&mut self, volume: &str, claim: &str, path: &str) {
        self.volumes.push(Volume {
            name: volume.into(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.into(),
                read_only: None,
            }),
            ..Volume::default()
        });
        self.mount(volume, path, false);
    }

    /// Mounts a volume that is declared elsewhere.
    pub fn mount(&mut self, volume: &str, path: &str, read_only: bool) {
        self.mounts.push(VolumeMount {
            name: volume.into(),
            mount_path: path.into(),
            read_only: read_only.then_some(true),
            ..VolumeMount::default()
        });
    }

    /// What the agent needs to reach a store.
    pub fn store(&mut self, store: &BackupStoreSpec) {
        if let Some(volume) = &store.volume {
            self.claim("store", &volume.claim_name, wire::STORE_VOLUME_FOLDER);
        }
        if let Some(s3) = &store.s3 {
            if let Some(secret) = &s3.credentials_secret_ref {
                self.secret("store-credentials", &secret.name, wire::STORE_CREDENTIALS_FOLDER);
            }
            if let Some(secret) = &s3.ca_secret_ref {
                self.secret("store-ca", &secret.name, wire::STORE_CA_FOLDER);
            }
        }
    }

    /// What every pod with the agent needs: its binary, sockets, /tmp and shared memory on a read-only root.
    pub fn agent(&mut self) {
        self.scratch("holdfast-bin", "/holdfast/bin", false);
        self.scratch("holdfast-run", wire::RUN_FOLDER, false);
        self.scratch("tmp", "/tmp", false);
        self.scratch("shm", "/dev/shm", true);
    }
}

/// The init container that copies the static agent into the pod.
pub fn install_agent(agent_image: &str) -> Container {
    Container {
        name: "install-agent".into(),
        image: Some(agent_image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec!["/holdfast-agent".into(), "install".into(), wire::AGENT_BINARY.into()]),
        security_context: Some(container_security()),
        resources: Some(requests("10m", "16Mi")),
        volume_mounts: Some(vec![VolumeMount {
            name: "holdfast-bin".into(),
            mount_path: "/holdfast/bin".into(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// Resource requests.
pub fn requests(cpu: &str, memory: &str) -> ResourceRequirements {
    ResourceRequirements {
        requests: Some(BTreeMap::from([
            ("cpu".to_string(), Quantity(cpu.into())),
            ("memory".to_string(), Quantity(memory.into())),
        ])),
        ..ResourceRequirements::default()
    }
}

/// A container's part of the `restricted` Pod Security Standard.
pub fn container_security() -> SecurityContext {
    SecurityContext {
        allow_privilege_escalation: Some(false),
        read_only_root_filesystem: Some(true),
        capabilities: Some(Capabilities { drop: Some(vec!["ALL".into()]), ..Capabilities::default() }),
        ..SecurityContext::default()
    }
}

/// A pod's part of the `restricted` Pod Security Standard.
pub fn pod_security() -> PodSecurityContext {
    PodSecurityContext {
        run_as_non_root: Some(true),
        run_as_user: Some(POSTGRES_UID),
        run_as_group: Some(POSTGRES_UID),
        fs_group: Some(POSTGRES_UID),
        fs_group_change_policy: Some("OnRootMismatch".into()),
        seccomp_profile: Some(SeccompProfile { type_: "RuntimeDefault".into(), ..SeccompProfile::default() }),
        ..PodSecurityContext::default()
    }
}

/// Everything that tells one worker from another.
#[derive(Clone, Debug)]
pub struct Worker<'a> {
    /// Name of the Job.
    pub name: String,
    /// Namespace.
    pub namespace: &'a str,
    /// The Database that it works for, if any.
    pub database: Option<&'a str>,
    /// The object that owns the Job.
    pub owner: OwnerReference,
    /// Image of the container: the database's for work that needs its programs, else the agent's own.
    pub image: &'a str,
    /// Image of the agent.
    pub agent_image: &'a str,
    /// Secrets to pull images with.
    pub image_pull_secrets: &'a [LocalRef],
    /// What it is to do.
    pub job: &'a WorkerJob,
    /// The store that it works with.
    pub store: &'a BackupStoreSpec,
    /// Secret with the replication role's password and Secret with the CA, when it talks to a database.
    pub connects_to: Option<&'a str>,
    /// PersistentVolumeClaim to fill, for a restore.
    pub claim: Option<&'a str>,
    /// Token of the operation that it works under.
    pub token: Option<&'a str>,
    /// Hard limit on its life, seconds: a last resort against a pod that never starts.
    pub deadline_seconds: Option<i64>,
    /// Resources.
    pub resources: Option<ResourceRequirements>,
}

/// The Job of a worker: one pod, no retries of its own (an attempt is the operator's to count), no API access.
pub fn worker_job(worker: &Worker<'_>) -> Result<Job, serde_json::Error> {
    let mut parts = Mounts::default();
    parts.agent();
    parts.store(worker.store);
    if let Some(database) = worker.connects_to {
        parts.secret("replication", &names::secret_replication(database), wire::REPLICATION_FOLDER);
        parts.secret("tls", &names::secret_tls(database), wire::TLS_FOLDER);
    }
    if let Some(claim) = worker.claim {
        parts.claim("data", claim, wire::VOLUME_FOLDER);
    }
    let mut labels = worker.database.map(names::labels).unwrap_or_default();
    labels.insert("app.kubernetes.io/managed-by".into(), "holdfast".into());
    labels.insert(names::LABEL_COMPONENT.into(), "worker".into());
    if let Some(token) = worker.token {
        labels.insert(names::LABEL_OPERATION_TOKEN.into(), token.into());
    }
    let container = Container {
        name: "worker".into(),
        image: Some(worker.image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec![wire::AGENT_BINARY.into(), "work".into()]),
        env: Some(vec![EnvVar {
            name: wire::JOB_VARIABLE.into(),
            value: Some(serde_json::to_string(worker.job)?),
            value_from: None,
        }]),
        security_context: Some(container_security()),
        resources: Some(worker.resources.clone().unwrap_or_else(|| requests("50m", "64Mi"))),
        volume_mounts: Some(parts.mounts),
        termination_message_policy: Some("File".into()),
        ..Container::default()
    };
    let pod = PodSpec {
        restart_policy: Some("Never".into()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(pod_security()),
        init_containers: Some(vec![install_agent(worker.agent_image)]),
        containers: vec![container],
        volumes: Some(parts.volumes),
        image_pull_secrets: (!worker.image_pull_secrets.is_empty()).then(|| {
            worker.image_pull_secrets.iter().map(|s| LocalObjectReference { name: s.name.clone() }).collect()
        }),
        termination_grace_period_seconds: Some(30),
        ..PodSpec::default()
    };
    Ok(Job {
        metadata: ObjectMeta {
            name: Some(worker.name.clone()),
            namespace: Some(worker.namespace.into()),
            labels: Some(labels.clone()),
            owner_references: Some(vec![worker.owner.clone()]),
            ..ObjectMeta::default()
        },
        spec: Some(JobSpec {
            backoff_limit: Some(0),
            active_deadline_seconds: worker.deadline_seconds,
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(pod),
            },
            ..JobSpec::default()
        }),
        status: None,
    })
}

/// What a worker's pod says: its result, or why there is none yet.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // One at a time, for the length of a match: a Box would only be in the way.
pub enum WorkerState {
    /// Not over. The text, if any, says what it waits for in Kubernetes' words ("ImagePullBackOff: …", "Unschedulable: …").
    Running(Option<String>),
    /// Over.
    Ended(wire::WorkerResult),
}

/// Reads what a worker's pods and Job say. A Job that ended without a readable result is a failure that may be tried again.
pub fn worker_state(job: &Job, pods: &[k8s_openapi::api::core::v1::Pod]) -> WorkerState {
    for pod in pods {
        let statuses = pod.status.as_ref().and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
        for status in statuses {
            let Some(ended) = status.state.as_ref().and_then(|s| s.terminated.as_ref()) else { continue };
            let message = ended.message.clone().unwrap_or_default();
            return WorkerState::Ended(serde_json::from_str(&message).unwrap_or_else(|_| {
                wire::WorkerResult::Failed {
                    reason: ended
                        .reason
                        .clone()
                        .filter(|r| r != "Error")
                        .unwrap_or_else(|| "WorkerDied".into()),
                    message: format!(
                        "the worker ended with exit code {} and no result {message}",
                        ended.exit_code
                    )
                    .trim()
                    .into(),
                    permanent: false,
                }
            }));
        }
    }
    let conditions = job.status.as_ref().and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    if let Some(failed) = conditions.iter().find(|c| c.type_ == "Failed" && c.status == "True") {
        return WorkerState::Ended(wire::WorkerResult::Failed {
            reason: failed.reason.clone().unwrap_or_else(|| "JobFailed".into()),
            message: failed.message.clone().unwrap_or_else(|| "the Job failed".into()),
            permanent: false,
        });
    }
    WorkerState::Running(pods.iter().find_map(waits_for))
}

/// Why a pod does not start, in Kubernetes' words.
pub fn waits_for(pod: &k8s_openapi::api::core::v1::Pod) -> Option<String> {
    let status = pod.status.as_ref()?;
    let containers =
        status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten());
    for waiting in containers.filter_map(|c| c.state.as_ref()?.waiting.as_ref()) {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        if !matches!(reason, "" | "PodInitializing" | "ContainerCreating") {
            return Some(format!("{reason}: {}", waiting.message.as_deref().unwrap_or_default()));
        }
    }
    let unscheduled =
        status.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False")?;
    Some(format!(
        "{}: {}",
        unscheduled.reason.as_deref().unwrap_or("Unschedulable"),
        unscheduled.message.as_deref().unwrap_or_default()
    ))
}
