//! The StatefulSet: the pods and their volumes. Pure.
//!
//! Pods are replaced by this operator alone (`OnDelete`), in an order that keeps the database available (`rollout`).

use crate::{
    plan::{children, services},
    validate::{Image, ValidatedDatabase},
};
use holdfast_core::{
    crd::database::{AntiAffinity, Superuser},
    names, pods, wire,
};
use k8s_openapi::{
    api::{
        apps::v1::{
            StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec,
            StatefulSetUpdateStrategy,
        },
        core::v1::{
            Affinity, ConfigMapVolumeSource, Container, ContainerPort, EnvVar, EnvVarSource, HTTPGetAction,
            LocalObjectReference, ObjectFieldSelector, PersistentVolumeClaim, PersistentVolumeClaimSpec, Pod,
            PodAffinityTerm, PodAntiAffinity, PodSpec, PodTemplateSpec, Probe, TopologySpreadConstraint,
            Volume, VolumeResourceRequirements, WeightedPodAffinityTerm,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use kube::ResourceExt;
use std::collections::BTreeMap;

/// Annotation of the StatefulSet: a hash of everything in the pod template but the images that the operator provides.
pub const ANNOTATION_TEMPLATE: &str = "holdfast.dev/template";
/// Name of the database container.
pub const CONTAINER: &str = "postgres";

/// What is decided elsewhere and goes into the StatefulSet.
#[derive(Clone, Copy, Debug)]
pub struct Decided<'a> {
    /// Pods that are to run.
    pub replicas: i32,
    /// The data set: name of the volume claim template.
    pub data_set: &'a str,
    /// The archive history: a label of the volumes.
    pub history: &'a str,
    /// The store that agents archive to.
    pub store: Option<&'a holdfast_core::BackupStoreSpec>,
    /// Image of the agent that the operator was started with.
    pub agent_image: &'a str,
    /// What the pods that run have, when no StatefulSet tells it.
    pub kept: Option<&'a Kept>,
}

/// The StatefulSet wanted, given the one that is there.
///
/// Images that the operator provides (the agent's, and the catalogue's) change only together with something else, so that an
/// operator upgrade restarts no database. That holds for a StatefulSet that is made anew under running pods, too. Volume claim templates cannot change in place: while the data set is the same the
/// live ones stay, word by word, and a change of size is a matter of its own (`plan`).
pub fn stateful_set(db: &ValidatedDatabase, decided: Decided<'_>, live: Option<&StatefulSet>) -> StatefulSet {
    let name = db.name.as_str();
    let before = match live {
        Some(live) => template_annotation(live, names::ANNOTATION_RESTARTED),
        None => decided.kept.and_then(|kept| kept.restarted.clone()),
    };
    let restarted = db.restart.clone().or(before);
    let build = |agent: &str, image: &str| pod_template(db, &decided, restarted.as_deref(), agent, image);
    let (given, provided) = match &db.image {
        Image::Given(image) => (image.as_str(), image.as_str()),
        Image::Catalogue(image) => ("", image.as_str()),
    };
    let mark = children::hash(&serde_json::to_value(build("", given)).unwrap_or_default());
    let running = match live {
        Some(live) => {
            Some(live).filter(|l| l.annotations().get(ANNOTATION_TEMPLATE) == Some(&mark)).and_then(images)
        }
        None => decided.kept.filter(|kept| kept.restarted == restarted).map(|kept| kept.images.clone()),
    };
    let template = match (&running, given) {
        (Some(images), "") => build(&images.agent, &images.postgres),
        (Some(images), given) => build(&images.agent, given),
        (None, _) => build(decided.agent_image, provided),
    };
    let mut claims = vec![claim_template(db, &decided)];
    if let Some(live) = live
        && data_set(live) == Some(decided.data_set)
        && let Some(there) = live.spec.as_ref().and_then(|s| s.volume_claim_templates.clone())
    {
        claims = there;
    }
    let mut metadata = children::meta(db, name.into());
    metadata.annotations = Some([(ANNOTATION_TEMPLATE.to_string(), mark)].into());
    StatefulSet {
        metadata,
        spec: Some(StatefulSetSpec {
            replicas: Some(decided.replicas),
            service_name: Some(names::service_pods(name)),
            pod_management_policy: Some("Parallel".into()),
            update_strategy: Some(StatefulSetUpdateStrategy {
                type_: Some("OnDelete".into()),
                rolling_update: None,
            }),
            selector: LabelSelector {
                match_labels: Some(services::instance_selector(name)),
                ..LabelSelector::default()
            },
            template,
            volume_claim_templates: Some(claims),
            persistent_volume_claim_retention_policy: Some(StatefulSetPersistentVolumeClaimRetentionPolicy {
                when_deleted: Some("Retain".into()),
                when_scaled: Some("Retain".into()),
            }),
            ..StatefulSetSpec::default()
        }),
        status: None,
    }
}

/// Images of a StatefulSet's pod template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    /// The agent's.
    pub agent: String,
    /// The database's.
    pub postgres: String,
}

/// Reads the images of a StatefulSet.
pub fn images(set: &StatefulSet) -> Option<Images> {
    images_of(set.spec.as_ref()?.template.spec.as_ref()?)
}

fn images_of(pod: &PodSpec) -> Option<Images> {
    let image = |list: &[Container], name: &str| list.iter().find(|c| c.name == name)?.image.clone();
    Some(Images {
        agent: image(pod.init_containers.as_deref().unwrap_or_default(), "install-agent")?,
        postgres: image(&pod.containers, CONTAINER)?,
    })
}

/// What running pods were made from, as far as it is not to change without need.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Their images.
    pub images: Images,
    /// The restart that was carried out last.
    pub restarted: Option<String>,
}

/// Reads it from the pods, if they agree. When they do not, some are to be replaced anyhow.
pub fn kept<'a>(mut pods: impl Iterator<Item = &'a Pod>) -> Option<Kept> {
    let read = |pod: &Pod| {
        let restarted = pod.annotations().get(names::ANNOTATION_RESTARTED).cloned();
        Some(Kept { images: images_of(pod.spec.as_ref()?)?, restarted })
    };
    let first = read(pods.next()?)?;
    pods.all(|pod| read(pod).as_ref() == Some(&first)).then_some(first)
}

/// The data set that a StatefulSet's pods mount.
pub fn data_set(set: &StatefulSet) -> Option<&str> {
    set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?.metadata.name.as_deref()
}

/// The history that the volumes of the claim template archive to.
pub fn history(set: &StatefulSet) -> Option<&str> {
    let template = set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?;
    template.metadata.labels.as_ref()?.get(names::LABEL_HISTORY).map(String::as_str).filter(|h| !h.is_empty())
}

/// Size in the volume claim template, bytes.
pub fn template_bytes(set: &StatefulSet) -> Option<i64> {
    let claim = set.spec.as_ref()?.volume_claim_templates.as_ref()?.first()?.spec.as_ref()?;
    crate::quantity::units(&claim.resources.as_ref()?.requests.as_ref()?.get("storage")?.0)
}

/// Whether pods of a StatefulSet have a volume with this Secret.
pub fn mounts(set: &StatefulSet, secret: &str) -> bool {
    let pod = set.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let mut volumes = pod.and_then(|pod| pod.volumes.as_ref()).into_iter().flatten();
    volumes.any(|v| v.secret.as_ref().and_then(|s| s.secret_name.as_deref()) == Some(secret))
}

/// A template annotation of a StatefulSet.
pub fn template_annotation(set: &StatefulSet, key: &str) -> Option<String> {
    set.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?.get(key).cloned()
}

fn claim_template(db: &ValidatedDatabase, decided: &Decided<'_>) -> PersistentVolumeClaim {
    let mut labels = names::labels(db.name.as_str());
    for (key, value) in [
        (names::LABEL_DATA_SET, decided.data_set),
        (names::LABEL_DATA_SET_STATE, names::STATE_CURRENT),
        (names::LABEL_HISTORY, decided.history),
    ] {
        labels.insert(key.into(), value.into());
    }
    PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(decided.data_set.into()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".into()]),
            storage_class_name: db.spec.storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some([("storage".to_string(), db.size.quantity.clone())].into()),
                limits: None,
            }),
            volume_mode: Some("Filesystem".into()),
            ..PersistentVolumeClaimSpec::default()
        }),
        status: None,
    }
}

fn pod_template(
    db: &ValidatedDatabase,
    decided: &Decided<'_>,
    restarted: Option<&str>,
    agent_image: &str,
    image: &str,
) -> PodTemplateSpec {
    let name = db.name.as_str();
    let spec = &db.spec;
    let mut labels = spec.pod_metadata.labels.clone();
    // Ours last: Services and the StatefulSet find the pods by them.
    labels.extend(names::labels(name));
    labels.insert(names::LABEL_COMPONENT.into(), "instance".into());
    let mut annotations = spec.pod_metadata.annotations.clone();
    if let Some(restarted) = restarted {
        annotations.insert(names::ANNOTATION_RESTARTED.into(), restarted.into());
    }

    let mut parts = pods::Mounts::default();
    parts.agent();
    parts.volumes.push(Volume {
        name: "config".into(),
        config_map: Some(ConfigMapVolumeSource {
            name: names::config_map(name),
            ..ConfigMapVolumeSource::default()
        }),
        ..Volume::default()
    });
    parts.mount("config", wire::CONFIG_FOLDER, true);
    parts.secret("tls", &names::secret_tls(name), wire::TLS_FOLDER);
    parts.secret("app", &names::secret_app(name), wire::APP_FOLDER);
    parts.secret("replication", &names::secret_replication(name), wire::REPLICATION_FOLDER);
    if spec.postgresql.superuser == Superuser::Enabled {
        parts.secret("superuser", &names::secret_superuser(name), wire::SUPERUSER_FOLDER);
    }
    if let Some(store) = decided.store {
        parts.store(store);
    }
    parts.mount(decided.data_set, wire::VOLUME_FOLDER, false);

    let placement = &spec.placement;
    PodTemplateSpec {
        metadata: Some(ObjectMeta {
            labels: Some(labels),
            annotations: (!annotations.is_empty()).then_some(annotations),
            ..ObjectMeta::default()
        }),
        spec: Some(PodSpec {
            service_account_name: Some(name.into()),
            enable_service_links: Some(false),
            share_process_namespace: Some(false),
            // A smart shutdown of sessions, a checkpoint and the archive's tail take their time.
            termination_grace_period_seconds: Some(300),
            security_context: Some(pods::pod_security()),
            init_containers: Some(vec![pods::install_agent(agent_image)]),
            containers: vec![container(db, image, parts.mounts)],
            volumes: Some(parts.volumes),
            affinity: affinity(name, placement.anti_affinity),
            topology_spread_constraints: placement
                .spread_zones
                .unwrap_or(true)
                .then(|| vec![spread_over_zones(name)]),
            node_selector: (!placement.node_selector.is_empty()).then(|| placement.node_selector.clone()),
            tolerations: (!placement.tolerations.is_empty()).then(|| placement.tolerations.clone()),
            priority_class_name: (!placement.priority_class_name.is_empty())
                .then(|| placement.priority_class_name.clone()),
            image_pull_secrets: (!spec.image_pull_secrets.is_empty()).then(|| {
                spec.image_pull_secrets
                    .iter()
                    .map(|s| LocalObjectReference { name: s.name.clone() })
                    .collect()
            }),
            ..PodSpec::default()
        }),
    }
}

fn container(
    db: &ValidatedDatabase,
    image: &str,
    mounts: Vec<k8s_openapi::api::core::v1::VolumeMount>,
) -> Container {
    let env = [
        ("POD_NAME", "metadata.name"),
        ("POD_NAMESPACE", "metadata.namespace"),
        ("POD_UID", "metadata.uid"),
        ("POD_IP", "status.podIP"),
    ];
    let ports = [
        (services::PORT_NAME, names::PORT_POSTGRESQL),
        ("metrics", names::PORT_METRICS),
        ("peers", names::PORT_PEERS),
    ];
    Container {
        name: CONTAINER.into(),
        image: Some(image.into()),
        image_pull_policy: Some("IfNotPresent".into()),
        command: Some(vec![wire::AGENT_BINARY.into(), "run".into()]),
        env: Some(
            env.iter()
                .map(|(name, path)| EnvVar {
                    name: (*name).into(),
                    value: None,
                    value_from: Some(EnvVarSource {
                        field_ref: Some(ObjectFieldSelector {
                            api_version: Some("v1".into()),
                            field_path: (*path).into(),
                        }),
                        ..EnvVarSource::default()
                    }),
                })
                .collect(),
        ),
        ports: Some(
            ports
                .iter()
                .map(|(name, number)| ContainerPort {
                    name: Some((*name).into()),
                    container_port: i32::from(*number),
                    protocol: Some("TCP".into()),
                    ..ContainerPort::default()
                })
                .collect(),
        ),
        // The agent answers at once, also while it clones or recovers: the startup probe only covers a slow start of itself.
        startup_probe: Some(probe("/healthz", 1, 300)),
        readiness_probe: Some(probe("/readyz", 1, 2)),
        liveness_probe: Some(probe("/healthz", 10, 3)),
        resources: db.spec.resources.clone(),
        security_context: Some(pods::container_security()),
        volume_mounts: Some(mounts),
        termination_message_policy: Some("File".into()),
        ..Container::default()
    }
}

fn probe(path: &str, period: i32, failures: i32) -> Probe {
    Probe {
        http_get: Some(HTTPGetAction {
            path: Some(path.into()),
            port: IntOrString::Int(i32::from(names::PORT_METRICS)),
            scheme: Some("HTTP".into()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        failure_threshold: Some(failures),
        timeout_seconds: Some(if period < 5 { 1 } else { 5 }),
        ..Probe::default()
    }
}

fn selector(database: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(services::instance_selector(database)), ..LabelSelector::default() }
}

fn affinity(database: &str, wish: AntiAffinity) -> Option<Affinity> {
    let term = PodAffinityTerm {
        label_selector: Some(selector(database)),
        topology_key: "kubernetes.io/hostname".into(),
        ..PodAffinityTerm::default()
    };
    let rule = match wish {
        AntiAffinity::None => return None,
        AntiAffinity::Required => PodAntiAffinity {
            required_during_scheduling_ignored_during_execution: Some(vec![term]),
            ..PodAntiAffinity::default()
        },
        AntiAffinity::Preferred => PodAntiAffinity {
            preferred_during_scheduling_ignored_during_execution: Some(vec![WeightedPodAffinityTerm {
                weight: 100,
                pod_affinity_term: term,
            }]),
            ..PodAntiAffinity::default()
        },
    };
    Some(Affinity { pod_anti_affinity: Some(rule), ..Affinity::default() })
}

fn spread_over_zones(database: &str) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: "topology.kubernetes.io/zone".into(),
        when_unsatisfiable: "ScheduleAnyway".into(),
        label_selector: Some(selector(database)),
        ..TopologySpreadConstraint::default()
    }
}

/// Names of the Secrets that the pods mount, for a message about pods that wait for one.
pub fn secrets(template: &PodTemplateSpec) -> Vec<String> {
    let volumes = template.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let names: BTreeMap<String, ()> =
        volumes.filter_map(|v| Some((v.secret.as_ref()?.secret_name.clone()?, ()))).collect();
    names.into_keys().collect()
}
