//! Whose data: which volumes count, what is recorded about them, their growth and their end. Pure.

use crate::{
    observe::Observed,
    plan::{Problem, growth::Ask, stateful_set},
    quantity,
};
use holdfast_core::{ids, names};
use k8s_openapi::{
    api::core::v1::{PersistentVolumeClaim, Pod},
    apimachinery::pkg::api::resource::Quantity,
};
use kube::ResourceExt;
use std::collections::{BTreeMap, BTreeSet};

/// The data set in use and what is recorded about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataSet {
    /// Its id.
    pub id: String,
    /// The archive history that it writes to.
    pub history: String,
    /// PostgreSQL's system identifier on record, or reported for the first time; none: there is no data yet.
    pub system_identifier: Option<String>,
}

/// What came out of choosing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// This one.
    Chosen(DataSet),
    /// Nothing may be touched.
    Refused(Problem),
    /// Volumes of a Database that was deleted are on their way out; names would clash.
    Terminating(Vec<String>),
}

fn label<'a>(claim: &'a PersistentVolumeClaim, key: &str) -> Option<&'a str> {
    claim.labels().get(key).map(String::as_str).filter(|text| !text.is_empty())
}

fn is_current(claim: &PersistentVolumeClaim) -> bool {
    label(claim, names::LABEL_DATA_SET_STATE) == Some(names::STATE_CURRENT)
}

fn of_data_set(claim: &PersistentVolumeClaim, id: &str) -> bool {
    is_current(claim) && label(claim, names::LABEL_DATA_SET) == Some(id)
}

/// Chooses the data set.
///
/// The volumes' labels count, not status: status may be lost, and a Database that is deleted and made again adopts its
/// volumes. Of several current data sets the one counts that no other replaces, so that a hand-over is one write. Two that
/// nobody replaces: nothing tells which one holds the data that people expect, so nothing is touched.
pub fn choose(observed: &Observed) -> Choice {
    let uid = observed.database.uid().unwrap_or_default();
    let (going, staying): (Vec<_>, Vec<_>) = observed
        .claims
        .iter()
        .filter(|c| is_current(c))
        .partition(|c| c.metadata.deletion_timestamp.is_some());
    let replaced: BTreeSet<&str> = staying
        .iter()
        .filter_map(|c| c.annotations().get(names::ANNOTATION_REPLACES).map(String::as_str))
        .collect();
    let mut candidates: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for claim in &staying {
        let Some(id) = label(claim, names::LABEL_DATA_SET) else { continue };
        all.entry(id).or_default().push(claim.name_any());
        if !replaced.contains(id) {
            candidates.entry(id).or_default().push(claim.name_any());
        }
    }
    let mut ids = candidates.keys();
    let id = match (ids.next(), ids.next()) {
        (Some(id), None) => (*id).to_string(),
        (None, _) if all.is_empty() => {
            // Somebody deleted the volumes under running pods: these keep them as long as they run, and the pods decide.
            let mounted = observed.stateful_set.as_deref().and_then(stateful_set::data_set);
            match mounted {
                Some(id) => id.to_string(),
                None if !going.is_empty() => {
                    return Choice::Terminating(going.iter().map(|c| c.name_any()).collect());
                }
                None => ids::data_set(&uid),
            }
        }
        _ => {
            let list = if candidates.is_empty() { &all } else { &candidates };
            let text: Vec<String> =
                list.iter().map(|(id, claims)| format!("data set {id} ({})", claims.join(", "))).collect();
            return Choice::Refused(Problem::new(
                "AmbiguousVolumes",
                format!(
                    "several data sets carry the label {}={}: {}; nothing is touched until only the right one does \
                     (set the label of the others to {})",
                    names::LABEL_DATA_SET_STATE,
                    names::STATE_CURRENT,
                    text.join("; "),
                    names::STATE_RETIRED
                ),
            ));
        }
    };
    let claims: Vec<&PersistentVolumeClaim> =
        observed.claims.iter().map(AsRef::as_ref).filter(|c| of_data_set(c, &id)).collect();
    let Some(history) = history(observed, &id, &claims) else {
        return Choice::Refused(Problem::new(
            "HistoryUnknown",
            format!(
                "the StatefulSet runs from data set {id}, whose volumes are not seen, and nothing says which history it archives to; \
                 nothing is touched until its volumes are there"
            ),
        ));
    };
    match system_identifier(observed, &id, &claims) {
        Ok(system_identifier) => Choice::Chosen(DataSet { id, history, system_identifier }),
        Err(problem) => Choice::Refused(problem),
    }
}

/// The history that a data set archives to. Its volumes may not be seen, because a watch is behind or somebody deleted them: then the
/// StatefulSet that made them knows, and what was said before. A guess would begin a second, empty history. `None`: nobody
/// knows. Only the data set that a Database begins with has the history of the Database's own uid.
fn history(observed: &Observed, id: &str, claims: &[&PersistentVolumeClaim]) -> Option<String> {
    let uid = observed.database.uid().unwrap_or_default();
    let set = observed.stateful_set.as_deref().filter(|set| stateful_set::data_set(set) == Some(id));
    let status = observed.database.status.as_ref().filter(|s| s.data_set.as_deref() == Some(id));
    let own = || (!claims.is_empty() || id == ids::data_set(&uid)).then(|| ids::history(&uid));
    claims
        .iter()
        .find_map(|c| label(c, names::LABEL_HISTORY).map(String::from))
        .or_else(|| set.and_then(stateful_set::history).map(String::from))
        .or_else(|| status.and_then(|s| s.history.clone()))
        .or_else(own)
}

/// The system identifier on record; else what the instances report. Instances that report another one than is recorded have
/// somebody else's data: they must neither be promoted nor overwritten.
fn system_identifier(
    observed: &Observed,
    id: &str,
    claims: &[&PersistentVolumeClaim],
) -> Result<Option<String>, Problem> {
    let mut known: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for claim in claims {
        if let Some(text) = label(claim, names::LABEL_SYSTEM_IDENTIFIER) {
            known.entry(text).or_default().push(format!("volume {}", claim.name_any()));
        }
    }
    if known.is_empty() {
        // A Lease of another data set is void.
        let lease = observed
            .primary_lease
            .as_deref()
            .filter(|lease| lease.labels().get(names::LABEL_DATA_SET).map(String::as_str) == Some(id));
        let in_lease = lease.and_then(|lease| {
            let key = names::LABEL_SYSTEM_IDENTIFIER;
            lease.labels().get(key).or_else(|| lease.annotations().get(key))
        });
        let status = observed.database.status.as_ref();
        let in_status =
            status.filter(|s| s.data_set.as_deref() == Some(id)).and_then(|s| s.system_identifier.as_ref());
        if let Some(text) = in_lease.filter(|text| !text.is_empty()) {
            known.entry(text).or_default().push("the primary's Lease".into());
        } else if let Some(text) = in_status.filter(|text| !text.is_empty()) {
            known.entry(text).or_default().push("status.systemIdentifier".into());
        }
    }
    for instance in &observed.instances {
        let report = &instance.report;
        let ours = report.data_set.is_empty() || report.data_set == id;
        if ours && !report.system_identifier.is_empty() {
            known.entry(&report.system_identifier).or_default().push(format!("pod {}", instance.name));
        }
    }
    match known.len() {
        0 => Ok(None),
        1 => Ok(known.keys().next().map(|text| (*text).to_string())),
        _ => {
            let text: Vec<String> =
                known.iter().map(|(id, who)| format!("{id} ({})", who.join(", "))).collect();
            Err(Problem::new(
                "ForeignData",
                format!(
                    "data of different databases: the system identifiers differ: {}; nothing is touched until the foreign \
                     volumes are removed or relabelled",
                    text.join("; ")
                ),
            ))
        }
    }
}

/// A change of one volume's claim: a patch of only these fields, on only this object.
#[derive(Clone, Debug, PartialEq)]
pub struct ClaimPatch {
    /// Name of the claim.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Label to set.
    pub system_identifier: Option<String>,
    /// Size to ask for.
    pub size: Option<Quantity>,
}

/// What a claim asks for, bytes.
pub fn asked(claim: &PersistentVolumeClaim) -> Option<i64> {
    let requests = claim.spec.as_ref()?.resources.as_ref()?.requests.as_ref()?;
    quantity::units(&requests.get("storage")?.0)
}

/// What its volume has, in bytes and as written; `None`: no volume is known.
pub fn has(claim: &PersistentVolumeClaim) -> Option<(i64, Quantity)> {
    let capacity = claim.status.as_ref()?.capacity.as_ref()?.get("storage")?;
    Some((quantity::units(&capacity.0)?, capacity.clone()))
}

/// Whether a claim has got its volume.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    claim.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound")
}

/// Claims of the data set by ordinal.
pub fn claims_of<'a>(observed: &'a Observed, data_set: &str) -> Vec<(i32, &'a PersistentVolumeClaim)> {
    let name = observed.database.name_any();
    let prefix = format!("{data_set}-{name}");
    let claims = observed.claims.iter().map(AsRef::as_ref).filter(|c| of_data_set(c, data_set));
    claims.filter_map(|c| Some((names::ordinal(&prefix, &c.name_any())?, c))).collect()
}

/// What is to be written to the claims: the system identifier, so that initdb is forbidden for ever even when status is
/// lost, and the sizes that are asked for now.
pub fn patches(observed: &Observed, data_set: &DataSet, sizes: &[Ask]) -> Vec<ClaimPatch> {
    let claims = claims_of(observed, &data_set.id);
    let living = claims.into_iter().filter(|(_, c)| c.metadata.deletion_timestamp.is_none());
    living
        .filter_map(|(_, claim)| {
            let system_identifier = data_set
                .system_identifier
                .clone()
                .filter(|_| label(claim, names::LABEL_SYSTEM_IDENTIFIER).is_none());
            let Named { name, uid } = Named::of(claim);
            let size = sizes.iter().find(|ask| ask.claim.uid == uid).map(|ask| ask.size.clone());
            (system_identifier.is_some() || size.is_some()).then_some(ClaimPatch {
                name,
                uid,
                system_identifier,
                size,
            })
        })
        .collect()
}

/// Smallest capacity of the instances' volumes.
pub fn capacity(observed: &Observed, data_set: &str, instances: i32) -> Option<Quantity> {
    let claims = claims_of(observed, data_set).into_iter().filter(|(ordinal, _)| *ordinal < instances);
    claims.filter_map(|(_, c)| has(c)).min_by_key(|(bytes, _)| *bytes).map(|(_, quantity)| quantity)
}

/// A claim by what tells it from another of the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Name.
    pub name: String,
    /// uid.
    pub uid: String,
}

impl Named {
    /// A claim's.
    pub fn of(claim: &PersistentVolumeClaim) -> Self {
        Self { name: claim.name_any(), uid: claim.uid().unwrap_or_default() }
    }
}

/// All volumes of the Database, of every data set, that are not yet on their way out.
pub fn all(observed: &Observed) -> Vec<Named> {
    let claims = observed.claims.iter().filter(|c| c.metadata.deletion_timestamp.is_none());
    claims.map(|c| Named::of(c)).collect()
}

/// The claims of the Database that a pod mounts.
pub fn mounted<'a>(observed: &'a Observed, pod: &Pod) -> Vec<&'a PersistentVolumeClaim> {
    let volumes = pod.spec.iter().flat_map(|s| s.volumes.iter().flatten());
    let names: BTreeSet<&str> =
        volumes.filter_map(|v| Some(v.persistent_volume_claim.as_ref()?.claim_name.as_str())).collect();
    let claims = observed.claims.iter().map(AsRef::as_ref);
    claims.filter(|c: &&PersistentVolumeClaim| names.contains(c.name_any().as_str())).collect()
}

/// The claim of an instance, if it waits for a volume, or has lost it.
pub fn pending<'a>(observed: &'a Observed, pod: &Pod) -> Option<&'a PersistentVolumeClaim> {
    let phase = |c: &PersistentVolumeClaim| c.status.as_ref().and_then(|s| s.phase.clone());
    let waits = |c: &&PersistentVolumeClaim| matches!(phase(c).as_deref(), Some("Pending" | "Lost"));
    mounted(observed, pod).into_iter().find(waits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixtures::{UID, claim, claim_with, instance, lease, observed};

    fn chosen(choice: Choice) -> DataSet {
        match choice {
            Choice::Chosen(set) => set,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn without_volumes_the_data_set_comes_from_the_uid() {
        let set = chosen(choose(&observed("")));
        assert_eq!((set.id, set.history), (ids::data_set(UID), ids::history(UID)));
        assert_eq!(set.system_identifier, None);
    }

    #[test]
    fn a_new_database_adopts_the_volumes_of_the_old_one() {
        let mut seen = observed("");
        seen.claims =
            vec![claim_with("d0aaaaaa", 0, "current", &[(names::LABEL_SYSTEM_IDENTIFIER, "7501")], None)];
        let set = chosen(choose(&seen));
        assert_eq!((set.id.as_str(), set.history.as_str()), ("d0aaaaaa", "hd0aaaaaa"));
        assert_eq!(set.system_identifier.as_deref(), Some("7501"));
    }

    #[test]
    fn the_choice_of_the_data_set() {
        let table: [(&str, Vec<PersistentVolumeClaim>, Result<&str, &str>); 6] = [
            (
                "retired and seed do not count",
                vec![
                    (*claim("d1", 0, "retired")).clone(),
                    (*claim("d2", 0, "seed")).clone(),
                    (*claim("d3", 0, "current")).clone(),
                ],
                Ok("d3"),
            ),
            (
                "two current ones",
                vec![(*claim("d1", 0, "current")).clone(), (*claim("d2", 0, "current")).clone()],
                Err("AmbiguousVolumes"),
            ),
            (
                "the one that replaces the other",
                vec![
                    (*claim("d1", 0, "current")).clone(),
                    (*claim_with("d2", 0, "current", &[], Some("d1"))).clone(),
                ],
                Ok("d2"),
            ),
            (
                "a chain",
                vec![
                    (*claim_with("d3", 0, "current", &[], Some("d2"))).clone(),
                    (*claim_with("d2", 0, "current", &[], Some("d1"))).clone(),
                    (*claim("d1", 0, "current")).clone(),
                ],
                Ok("d3"),
            ),
            (
                "one replaces a third of three",
                vec![
                    (*claim("d1", 0, "current")).clone(),
                    (*claim("d2", 0, "current")).clone(),
                    (*claim_with("d3", 0, "current", &[], Some("d1"))).clone(),
                ],
                Err("AmbiguousVolumes"),
            ),
            (
                "a circle",
                vec![
                    (*claim_with("d1", 0, "current", &[], Some("d2"))).clone(),
                    (*claim_with("d2", 0, "current", &[], Some("d1"))).clone(),
                ],
                Err("AmbiguousVolumes"),
            ),
        ];
        for (case, claims, expected) in table {
            let mut seen = observed("");
            seen.claims = claims.into_iter().map(std::sync::Arc::new).collect();
            match (choose(&seen), expected) {
                (Choice::Chosen(set), Ok(id)) => assert_eq!(set.id, id, "{case}"),
                (Choice::Refused(problem), Err(reason)) => {
                    assert_eq!(problem.reason, reason, "{case}");
                    assert!(
                        problem.message.contains("d1-orders-0") || problem.message.contains("d2-orders-0"),
                        "{case}"
                    );
                }
                (other, _) => panic!("{case}: {other:?}"),
            }
        }
    }

    #[test]
    fn volumes_on_their_way_out_are_waited_for() {
        let mut seen = observed("");
        let mut going = (*claim("d1", 0, "current")).clone();
        going.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(Timestamp::UNIX_EPOCH));
        seen.claims = vec![std::sync::Arc::new(going)];
        assert!(matches!(choose(&seen), Choice::Terminating(_)));
    }
    use k8s_openapi::jiff::Timestamp;

    #[test]
    fn the_system_identifier_is_found_where_it_is_recorded() {
        let id = ids::data_set(UID);
        let mut seen = observed("");
        seen.primary_lease = Some(lease(
            "orders-primary",
            &[(names::LABEL_DATA_SET, &id), (names::LABEL_SYSTEM_IDENTIFIER, "7501")],
        ));
        assert_eq!(chosen(choose(&seen)).system_identifier.as_deref(), Some("7501"));
        // A Lease of another data set is void.
        seen.primary_lease = Some(lease(
            "orders-primary",
            &[(names::LABEL_DATA_SET, "d9"), (names::LABEL_SYSTEM_IDENTIFIER, "7501")],
        ));
        assert_eq!(chosen(choose(&seen)).system_identifier, None);
        seen.instances = vec![instance(0, |report| report.system_identifier = "7502".into())];
        assert_eq!(chosen(choose(&seen)).system_identifier.as_deref(), Some("7502"));
        seen.claims = vec![claim_with(&id, 0, "current", &[(names::LABEL_SYSTEM_IDENTIFIER, "7501")], None)];
        let Choice::Refused(problem) = choose(&seen) else { panic!("accepted") };
        assert_eq!(problem.reason, "ForeignData");
        assert!(problem.message.contains("7502 (pod orders-0)"), "{}", problem.message);
    }

    #[test]
    fn claims_are_labelled_once() {
        let mut seen = observed("");
        let known = [(names::LABEL_SYSTEM_IDENTIFIER, "7501")];
        seen.claims = vec![
            claim("d1", 0, "current"),
            claim_with("d1", 1, "current", &known, None),
            claim("d0", 0, "retired"),
        ];
        let set = DataSet { id: "d1".into(), history: "h".into(), system_identifier: Some("7501".into()) };
        let labels = patches(&seen, &set, &[]);
        assert_eq!(labels.len(), 1);
        assert_eq!((labels[0].name.as_str(), &labels[0].size), ("d1-orders-0", &None));
        assert_eq!(capacity(&seen, "d1", 2), Some(Quantity("1Gi".into())));
    }
}
