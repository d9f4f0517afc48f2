//! Volumes of new replicas as clones of a running instance's volume, and the way back to streaming when no clone comes. Pure.
//!
//! A clone is what a power failure would have left of its source, so PostgreSQL recovers it as a standby. The agent finds data of its own
//! data set that another pod began on, makes it a standby's, and follows the primary. A driver that ignores the source makes an
//! empty volume: it is filled by streaming.

use crate::{
    observe::{Counts, Observed, Question, Words},
    plan::{
        stateful_set,
        volumes::{self, DataSet, Named},
    },
    status::{self, space},
};
use holdfast_core::{names, report::Role};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        core::v1::{PersistentVolumeClaim, TypedLocalObjectReference},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
    jiff::Timestamp,
};
use kube::ResourceExt;

/// Annotation of a claim: the claim that its volume was to be cloned from.
pub const ANNOTATION_CLONED_FROM: &str = "holdfast.dev/cloned-from";
/// A clone that the driver says it cannot make is given up after so many seconds.
const FAILED_SECONDS: i64 = 60;
/// One that simply does not come is given up after so many seconds: streaming would be under way by then.
const SLOW_SECONDS: i64 = 120;

/// A clone that is given up: its claim and its pod go, and the StatefulSet's controller makes both anew, without a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// The claim. It never had a volume.
    pub claim: Named,
    /// The pod that waits for it.
    pub pod: Named,
    /// For people.
    pub why: String,
}

/// The claim that a clone was to be made from, if the claim is a clone.
pub fn source(claim: &PersistentVolumeClaim) -> Option<&str> {
    claim.annotations().get(ANNOTATION_CLONED_FROM).map(String::as_str)
}

/// Whether a claim still waits for its volume, and never had one.
pub fn never_bound(claim: &PersistentVolumeClaim) -> bool {
    let phase = claim.status.as_ref().and_then(|s| s.phase.as_deref());
    let volume = claim.spec.as_ref().and_then(|s| s.volume_name.as_deref()).unwrap_or_default();
    phase == Some("Pending") && volume.is_empty()
}

/// Claims to make before the StatefulSet gets more replicas than it has.
///
/// None for an ordinal that has a claim, and none while there is no data to copy or no instance that is well. None either when
/// the new pods get another agent than this operator's: an older one knows nothing of clones, and would take a primary's
/// for that primary come back.
pub fn wanted(
    observed: &Observed,
    set: &StatefulSet,
    data_set: &DataSet,
    agent_image: &str,
) -> Vec<PersistentVolumeClaim> {
    let replicas = |set: &StatefulSet| set.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let (Some(live), Some(_)) = (observed.stateful_set.as_deref(), &data_set.system_identifier) else {
        return Vec::new();
    };
    // From none at all nothing runs that could be cloned.
    let new = replicas(live)..replicas(set);
    if new.start == 0 || new.is_empty() || stateful_set::data_set(live) != Some(data_set.id.as_str()) {
        return Vec::new();
    }
    if stateful_set::images(set).is_none_or(|images| images.agent != agent_image) {
        return Vec::new();
    }
    let Some(origin) = origin(observed, data_set) else { return Vec::new() };
    let database = observed.database.name_any();
    new.map(|ordinal| names::claim(&data_set.id, &database, ordinal))
        .filter(|name| observed.claims.iter().all(|claim| claim.name_any() != *name))
        .filter_map(|name| clone_of(origin, live, name))
        .collect()
}

/// The claim to clone: of a standby that streams, the last one first, so that the ones next in line are left in peace; else of
/// the primary. Only of an instance that reports on its volume: an older agent does not write down whose volume it is, and the
/// clone would not be known as one.
fn origin<'a>(observed: &'a Observed, data_set: &DataSet) -> Option<&'a PersistentVolumeClaim> {
    let primary = status::primary(observed)?;
    let claims = volumes::claims_of(observed, &data_set.id);
    let standbys = observed.instances.iter().rev().filter(|i| {
        i.ready
            && i.report.role == Role::Replica
            && i.report.timeline == primary.report.timeline
            && primary.report.streaming.contains(&i.name)
            && !space::is_full(i)
    });
    let claim = |ordinal: i32| claims.iter().find(|(o, _)| *o == ordinal).map(|(_, claim)| *claim);
    let usable = |claim: &&PersistentVolumeClaim| {
        let class = claim.spec.as_ref().and_then(|s| s.storage_class_name.as_deref()).unwrap_or_default();
        volumes::is_bound(claim) && claim.metadata.deletion_timestamp.is_none() && !class.is_empty()
    };
    let primary = Some(primary).filter(|p| p.ready && !space::is_full(p));
    let marked = standbys.chain(primary).filter(|i| i.report.volume.is_some());
    marked.filter_map(|i| claim(i.ordinal)).find(usable)
}

/// As the StatefulSet's controller makes claims, with a source. The class is the source's, and the size not below what it has:
/// drivers clone nothing else.
fn clone_of(
    origin: &PersistentVolumeClaim,
    set: &StatefulSet,
    name: String,
) -> Option<PersistentVolumeClaim> {
    let spec = set.spec.as_ref()?;
    let template = spec.volume_claim_templates.as_ref()?.first()?;
    let mut labels = template.metadata.labels.clone().unwrap_or_default();
    labels.extend(spec.selector.match_labels.clone().unwrap_or_default());
    let mut annotations = template.metadata.annotations.clone().unwrap_or_default();
    annotations.insert(ANNOTATION_CLONED_FROM.into(), origin.name_any());
    let mut claim = PersistentVolumeClaim {
        metadata: ObjectMeta {
            name: Some(name),
            namespace: origin.namespace(),
            labels: Some(labels),
            annotations: Some(annotations),
            ..ObjectMeta::default()
        },
        spec: template.spec.clone(),
        status: None,
    };
    let (bytes, capacity) = volumes::has(origin)?;
    let small = volumes::asked(&claim).is_none_or(|asked| asked < bytes);
    let spec = claim.spec.as_mut()?;
    if small {
        let requests = spec.resources.get_or_insert_default().requests.get_or_insert_default();
        requests.insert("storage".into(), capacity);
    }
    spec.storage_class_name = origin.spec.as_ref()?.storage_class_name.clone();
    spec.data_source = Some(TypedLocalObjectReference {
        api_group: None,
        kind: "PersistentVolumeClaim".into(),
        name: origin.name_any(),
    });
    Some(claim)
}

/// Clones that have no volume yet, with the pod that waits for it, and for how many seconds.
fn waiting(observed: &Observed, now: Timestamp) -> Vec<(&PersistentVolumeClaim, Named, i64)> {
    let pods = observed.instances.iter().filter(|i| !i.terminating);
    pods.flat_map(|instance| {
        let claims = volumes::mounted(observed, &instance.pod).into_iter();
        claims
            .filter(|c| source(c).is_some() && never_bound(c) && c.metadata.deletion_timestamp.is_none())
            .map(|claim| {
                let made = claim.metadata.creation_timestamp.as_ref();
                let age = made.map_or(0, |t| now.as_second() - t.0.as_second()).min(instance.age(now));
                let pod = Named { name: instance.name.clone(), uid: instance.uid.clone() };
                (claim, pod, age)
            })
            .collect::<Vec<_>>()
    })
    .collect()
}

/// Clones about which the events are asked, before it is decided whether to give them up.
pub fn questions(observed: &Observed, now: Timestamp) -> Vec<Question> {
    let late = waiting(observed, now).into_iter().filter(|(_, _, age)| *age >= FAILED_SECONDS);
    late.map(|(claim, _, _)| Question {
        uid: claim.uid().unwrap_or_default(),
        what: format!("volume claim {}", claim.name_any()),
        counts: Counts::Unbound { slow: false },
    })
    .collect()
}

/// Clones to give up.
pub fn given_up(observed: &Observed, now: Timestamp) -> Vec<GivenUp> {
    let judged = waiting(observed, now).into_iter().filter_map(|(claim, pod, age)| {
        let uid = claim.uid().unwrap_or_default();
        let words: Option<&Words> = observed.clone_words.get(&uid);
        let why = match words {
            Some(words) if age >= FAILED_SECONDS => format!("{}: {}", words.reason, words.message),
            _ if age >= SLOW_SECONDS => format!("it has no volume after {age} s"),
            _ => return None,
        };
        let why = format!(
            "volume claim {} was to be a clone of {}, and is made anew to be filled by streaming: {why}",
            claim.name_any(),
            source(claim).unwrap_or_default()
        );
        Some(GivenUp { claim: Named::of(claim), pod, why })
    });
    judged.collect()
}

#[cfg(test)]
#[path = "clones_tests.rs"]
mod tests;
