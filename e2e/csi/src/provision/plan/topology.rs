//! Where a volume must be reachable: from the nodes that registered the driver, the scheduler's choice and the class.

use crate::wire::{Topology, TopologyRequirement};
use k8s_openapi::api::{
    core::v1::{Node, TopologySelectorTerm},
    storage::v1::CSINode,
};
use kube::ResourceExt;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

/// A place in the driver's terms, such as `topology.kubernetes.io/zone` = `a`.
pub type Segments = BTreeMap<String, String>;

/// Why there is no requirement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Nowhere {
    /// The chosen node is gone: the scheduler has to choose again.
    NodeGone(String),
    /// Not possible now: the words say why.
    Refused(String),
}

/// The places of all nodes, or why one has none: a node says with its CSINode which labels matter to the driver.
fn place(driver: &str, node: &Node, csi_nodes: &[Arc<CSINode>]) -> Result<Segments, String> {
    let name = node.name_any();
    let registered = csi_nodes
        .iter()
        .find(|csi| csi.name_any() == name)
        .and_then(|csi| csi.spec.drivers.iter().find(|d| d.name == driver))
        .ok_or_else(|| format!("node {name} has not registered driver {driver}; is its plugin running?"))?;
    let keys = registered.topology_keys.iter().flatten();
    keys.map(|key| {
        let value = node.labels().get(key).ok_or_else(|| format!("node {name} has no label {key}"))?;
        Ok((key.clone(), value.clone()))
    })
    .collect()
}

/// Terms are alternatives; all expressions of a term count. No terms: everywhere.
fn allowed(terms: &[TopologySelectorTerm], labels: &BTreeMap<String, String>) -> bool {
    let fits = |term: &TopologySelectorTerm| {
        let mut all = term.match_label_expressions.iter().flatten();
        all.all(|e| labels.get(&e.key).is_some_and(|value| e.values.contains(value)))
    };
    terms.is_empty() || terms.iter().any(fits)
}

/// What CreateVolume is asked for. With a selected node only its place will do: a volume elsewhere could not be used there.
/// Without, any place, and `turn` says which is preferred, so that volumes spread. `None`: places do not matter.
///
/// Errors: there is no place.
pub fn requirement(
    driver: &str,
    (nodes, csi_nodes): (&[Arc<Node>], &[Arc<CSINode>]),
    selected: Option<&str>,
    terms: &[TopologySelectorTerm],
    turn: usize,
) -> Result<Option<TopologyRequirement>, Nowhere> {
    let places: Vec<Segments> = if let Some(name) = selected {
        let node = nodes.iter().find(|node| node.name_any() == name);
        let node = node.ok_or_else(|| Nowhere::NodeGone(name.to_string()))?;
        if !allowed(terms, node.labels()) {
            let words = format!("node {name} is outside of the class's allowedTopologies");
            return Err(Nowhere::Refused(words));
        }
        vec![place(driver, node, csi_nodes).map_err(Nowhere::Refused)?]
    } else {
        let usable = nodes.iter().filter(|node| allowed(terms, node.labels()));
        let found: Vec<_> = usable.map(|node| place(driver, node, csi_nodes)).collect();
        let places: BTreeSet<Segments> = found.iter().filter_map(|p| p.as_ref().ok().cloned()).collect();
        if places.is_empty() {
            let why = found.into_iter().find_map(Result::err);
            let why = why.unwrap_or_else(|| "there is none that the class's allowedTopologies allow".into());
            return Err(Nowhere::Refused(format!("no node can use the volume: {why}")));
        }
        let mut places: Vec<Segments> = places.into_iter().collect();
        let first = turn % places.len();
        places.rotate_left(first);
        places
    };
    if places.iter().all(BTreeMap::is_empty) {
        return Ok(None);
    }
    let wire = |segments: &Segments| Topology { segments: segments.clone().into_iter().collect() };
    let preferred: Vec<Topology> = places.iter().map(wire).collect();
    Ok(Some(TopologyRequirement { requisite: preferred.clone(), preferred }))
}

/// Turns that differ for `data-0`, `data-1`, `data-2`: the claims of a StatefulSet land in different places.
pub fn turn(claim: &str) -> usize {
    let (base, ordinal) = claim
        .rsplit_once('-')
        .and_then(|(base, last)| Some((base, last.parse::<u32>().ok()?)))
        .unwrap_or((claim, 0));
    // FNV-1a: the same for the same name in every process.
    let hash = base.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    usize::try_from(hash.wrapping_add(ordinal)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const DRIVER: &str = "disks.example.com";
    const ZONE: &str = "topology.kubernetes.io/zone";

    fn node(name: &str, zone: Option<&str>) -> Arc<Node> {
        let labels = zone.map(|zone| json!({ZONE: zone}));
        Arc::new(serde_json::from_value(json!({"metadata": {"name": name, "labels": labels}})).unwrap())
    }

    fn csi(name: &str, driver: &str, keys: &[&str]) -> Arc<CSINode> {
        let drivers = json!([{"name": driver, "nodeID": name, "topologyKeys": keys}]);
        let value = json!({"metadata": {"name": name}, "spec": {"drivers": drivers}});
        Arc::new(serde_json::from_value(value).unwrap())
    }

    fn zones(requirement: &[Topology]) -> Vec<&str> {
        requirement.iter().map(|t| t.segments[ZONE].as_str()).collect()
    }

    type Cluster = (Vec<Arc<Node>>, Vec<Arc<CSINode>>);

    fn cluster() -> Cluster {
        let names = [("n1", "a"), ("n2", "b"), ("n3", "b"), ("n4", "c")];
        let nodes = names.iter().map(|(name, zone)| node(name, Some(zone))).collect();
        (nodes, names.iter().map(|(name, _)| csi(name, DRIVER, &[ZONE])).collect())
    }

    fn ask(
        (nodes, csi): &Cluster,
        selected: Option<&str>,
        terms: serde_json::Value,
        turn: usize,
    ) -> Result<Option<TopologyRequirement>, Nowhere> {
        let terms: Vec<TopologySelectorTerm> = serde_json::from_value(terms).unwrap();
        requirement(DRIVER, (nodes, csi), selected, &terms, turn)
    }

    #[test]
    fn only_the_selected_nodes_zone_will_do() {
        let found = ask(&cluster(), Some("n3"), json!([]), 7).unwrap().unwrap();
        assert_eq!(zones(&found.requisite), ["b"]);
        assert_eq!(zones(&found.preferred), ["b"]);
    }

    #[test]
    fn without_a_selected_node_zones_take_turns() {
        let zones_at = |turn| {
            let found = ask(&cluster(), None, json!([]), turn).unwrap().unwrap();
            assert_eq!(found.requisite.len(), 3);
            zones(&found.preferred).join("")
        };
        assert_eq!([zones_at(0), zones_at(1), zones_at(2), zones_at(3)], ["abc", "bca", "cab", "abc"]);
        let spread: BTreeSet<usize> = (0..3).map(|n| turn(&format!("pgdata-orders-{n}")) % 3).collect();
        assert_eq!(spread.len(), 3);
    }

    #[test]
    fn allowed_topologies_are_alternatives() {
        let terms = json!([{"matchLabelExpressions": [{"key": ZONE, "values": ["c"]}]},
            {"matchLabelExpressions": [{"key": ZONE, "values": ["a", "z"]}]}]);
        let found = ask(&cluster(), None, terms.clone(), 0).unwrap().unwrap();
        assert_eq!(zones(&found.requisite), ["a", "c"]);
        let refused = ask(&cluster(), Some("n2"), terms, 0).unwrap_err();
        assert!(matches!(refused, Nowhere::Refused(words) if words.contains("allowedTopologies")));
        let nowhere = json!([{"matchLabelExpressions": [{"key": ZONE, "values": ["z"]}]}]);
        assert!(matches!(ask(&cluster(), None, nowhere, 0), Err(Nowhere::Refused(_))));
    }

    #[test]
    fn nodes_that_are_gone_unregistered_or_unlabelled_are_said() {
        assert_eq!(ask(&cluster(), Some("n9"), json!([]), 0), Err(Nowhere::NodeGone("n9".into())));
        let refused = |cluster: &Cluster| match ask(cluster, Some("n1"), json!([]), 0) {
            Err(Nowhere::Refused(words)) => words,
            other => panic!("{other:?}"),
        };
        let unregistered = (vec![node("n1", Some("a"))], vec![csi("n1", "other.example.com", &[ZONE])]);
        assert!(refused(&unregistered).contains("has not registered driver disks.example.com"));
        assert!(matches!(ask(&unregistered, None, json!([]), 0), Err(Nowhere::Refused(_))));
        let unlabelled = (vec![node("n1", None)], vec![csi("n1", DRIVER, &[ZONE])]);
        assert!(refused(&unlabelled).contains(ZONE));
    }

    #[test]
    fn a_driver_without_topology_asks_for_no_place() {
        let flat = (vec![node("n1", None)], vec![csi("n1", DRIVER, &[])]);
        assert_eq!(ask(&flat, Some("n1"), json!([]), 0), Ok(None));
        assert_eq!(ask(&flat, None, json!([]), 0), Ok(None));
    }
}
