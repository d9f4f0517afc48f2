//! The kubelets: pods that are bound run, end, are started again, and go.

use super::{
    Knobs, Poke,
    desk::{Desk, is_going, kubelet},
    host::Programs,
    report,
    run::Live,
};
use crate::{rest::meta, server::Shared, session::Session};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};
use tokio::time::Instant;

/// How long mounts, the sandbox and init containers take together.
const START: Duration = Duration::from_millis(200);
/// The pause before the first restart; it doubles up to the longest, and a run of that length forgives.
const RESTART: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(300);
const FORGIVEN: Duration = Duration::from_secs(600);

/// How the containers of a pod ended.
#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub code: i32,
    pub reason: &'static str,
    pub message: String,
    pub since: String,
    pub until: String,
    /// Ids of the containers by name.
    pub ids: BTreeMap<String, String>,
}

pub(super) enum Stage {
    /// Not started.
    Waiting,
    /// Not started: this image cannot be pulled.
    NoImage(String),
    Running(Live),
    /// Ended; to be started again at that time, if at all.
    Down(Ended, Option<Instant>),
    /// Ended before it ever began.
    Never,
}

/// A pod on its node.
pub(super) struct Run {
    pub namespace: String,
    pub name: String,
    pub node: usize,
    pub ip: String,
    pub started: String,
    pub stage: Stage,
    pub restarts: i32,
    /// The end before the current run.
    pub last: Option<Ended>,
    pub ids: BTreeMap<String, String>,
    /// How the init containers ended, once they have.
    pub prepared: Option<Ended>,
    failures: u32,
    stop_by: Option<Instant>,
    /// The version of the pod that needed no write, and whether its program was ready then.
    quiet: Option<(String, bool)>,
}

#[derive(Default)]
pub(super) struct Kubelets {
    runs: BTreeMap<String, Run>,
    addresses: usize,
}

/// What programs are started with.
pub(super) struct Ground<'a> {
    pub shared: &'a Arc<Shared>,
    pub programs: &'a Arc<dyn Programs>,
    pub poke: &'a Arc<Poke>,
}

impl Kubelets {
    /// Kills the container of a pod. Whether one ran.
    pub fn kill(&mut self, namespace: &str, name: &str) -> bool {
        let mut killed = false;
        for run in self.runs.values_mut().filter(|r| r.namespace == namespace && r.name == name) {
            if let Stage::Running(live) = &mut run.stage
                && live.exit().is_none()
            {
                live.kill();
                killed = true;
            }
        }
        killed
    }

    /// Ends everything on a node, without a word to anyone.
    pub fn lose(&mut self, node: &str) {
        for run in self.runs.values_mut().filter(|r| format!("node-{}", r.node) == node) {
            if let Stage::Running(live) = &mut run.stage {
                live.kill();
            }
        }
    }

    pub fn sync(&mut self, desk: &mut Desk<'_>, knobs: &Knobs, ground: &Ground<'_>) {
        let mut there = BTreeSet::new();
        for pod in desk.all(desk.at.pods) {
            let Some(node) = pod["spec"]["nodeName"].as_str() else { continue };
            let uid = meta(&pod, "uid").to_string();
            there.insert(uid.clone());
            if knobs.lost.contains(node) {
                continue;
            }
            if !self.runs.contains_key(&uid) {
                if ["Succeeded", "Failed"].iter().any(|phase| pod["status"]["phase"] == *phase) {
                    continue;
                }
                let run = self.take_in(desk, &pod, node);
                self.runs.insert(uid.clone(), run);
            }
            let Some(run) = self.runs.get_mut(&uid) else { continue };
            if run.is_quiet(&pod) {
                continue;
            }
            run.step(desk, knobs, ground, &pod);
            let status = report::status(&pod, run, &desk.stamp());
            let user = format!("system:node:{node}");
            let (pod, written) = desk.set_status(kubelet(&user), desk.at.pods, &pod, status);
            run.quiet = (!written).then(|| (meta(&pod, "resourceVersion").to_string(), run.is_ready()));
            let over = match &run.stage {
                Stage::Down(_, again) => again.is_none(),
                Stage::Never => true,
                _ => false,
            };
            // The end is written down before the object goes.
            let last = pod["metadata"]["deletionGracePeriodSeconds"] == 0;
            if is_going(&pod) && over && !written && !last {
                desk.delete(kubelet(&user), desk.at.pods, &pod, Some(0), "");
            }
        }
        // Deleted by force: nothing of them stays.
        self.runs.retain(|uid, _| there.contains(uid));
    }

    fn take_in(&mut self, desk: &Desk<'_>, pod: &Value, node: &str) -> Run {
        self.addresses += 1;
        let number = node.strip_prefix("node-").and_then(|n| n.parse().ok()).unwrap_or(0);
        Run {
            namespace: meta(pod, "namespace").into(),
            name: meta(pod, "name").into(),
            node: number,
            ip: format!("10.{}.{}.{}", 200 + number, self.addresses / 250, self.addresses % 250 + 2),
            started: desk.stamp(),
            stage: Stage::Waiting,
            restarts: 0,
            last: None,
            ids: BTreeMap::new(),
            prepared: None,
            failures: 0,
            stop_by: None,
            quiet: None,
        }
    }
}

/// Whether a pod's containers are started again after an end like this.
fn again(pod: &Value, code: i32) -> bool {
    match pod["spec"]["restartPolicy"].as_str() {
        Some("Never") => false,
        Some("OnFailure") => code != 0,
        _ => true,
    }
}

impl Run {
    fn is_ready(&self) -> bool {
        matches!(&self.stage, Stage::Running(live) if live.is_ready())
    }

    /// Whether nothing happened to a pod that runs, on either side, since it was looked at last.
    fn is_quiet(&self, pod: &Value) -> bool {
        let runs = matches!(&self.stage, Stage::Running(live) if live.exit().is_none()) && !is_going(pod);
        let seen = |(version, ready): &(String, bool)| {
            version == meta(pod, "resourceVersion") && *ready == self.is_ready()
        };
        runs && self.quiet.as_ref().is_some_and(seen)
    }

    fn step(&mut self, desk: &mut Desk<'_>, knobs: &Knobs, ground: &Ground<'_>, pod: &Arc<Value>) {
        let going = is_going(pod);
        if let Stage::Running(live) = &mut self.stage {
            if going {
                stop(desk, live, &mut self.stop_by, pod);
            }
            if let Some(exit) = live.exit() {
                let lost = knobs.returned.contains(&format!("node-{}", self.node)) && exit.code == 137;
                let (code, reason) = match exit.code {
                    _ if lost => (255, "Unknown"),
                    0 => (0, "Completed"),
                    code => (code, "Error"),
                };
                if live.from + FORGIVEN <= desk.now {
                    self.failures = 0;
                }
                let ids = std::mem::take(&mut self.ids);
                let (since, until) = (live.since.clone(), desk.stamp());
                let ended = Ended { code, reason, message: exit.message, since, until, ids };
                let pause = RESTART.saturating_mul(2_u32.saturating_pow(self.failures.min(16))).min(LONGEST);
                self.failures += 1;
                let again = again(pod, code).then(|| desk.now + pause);
                self.stage = Stage::Down(ended, again);
            }
        }
        match &mut self.stage {
            Stage::Waiting | Stage::NoImage(_) if going => self.stage = Stage::Never,
            Stage::Waiting | Stage::NoImage(_) => self.prepare(desk, knobs, ground, pod),
            Stage::Down(_, again) if going => *again = None,
            Stage::Down(ended, Some(at)) if *at <= desk.now => {
                self.last = Some(ended.clone());
                self.restarts += 1;
                self.start(desk, ground, pod);
            }
            Stage::Down(_, Some(at)) => desk.wake(*at),
            _ => {}
        }
    }

    fn prepare(&mut self, desk: &mut Desk<'_>, knobs: &Knobs, ground: &Ground<'_>, pod: &Arc<Value>) {
        let user = format!("system:node:node-{}", self.node);
        let who = kubelet(&user);
        if let Some(words) = unmountable(desk, pod) {
            desk.memory.mounts = true;
            self.stage = Stage::Waiting;
            desk.tell(who, pod, "Warning", "FailedMount", &words);
            return;
        }
        if !desk.waited(format!("start of {}", meta(pod, "uid")), START) {
            return;
        }
        let images = ["initContainers", "containers"].map(|field| pod["spec"][field].as_array());
        let mut images = images.into_iter().flatten().flatten().filter_map(|c| c["image"].as_str());
        match images.find(|image| knobs.failing.contains(*image)) {
            Some(image) => {
                desk.tell(
                    who,
                    pod,
                    "Warning",
                    "Failed",
                    &format!("Failed to pull image {image:?}: not found"),
                );
                desk.tell(who, pod, "Normal", "BackOff", &format!("Back-off pulling image {image:?}"));
                self.stage = Stage::NoImage(image.into());
            }
            None => self.start(desk, ground, pod),
        }
    }

    fn start(&mut self, desk: &mut Desk<'_>, ground: &Ground<'_>, pod: &Arc<Value>) {
        self.ids = ids(desk, &pod["spec"]["containers"]);
        if self.prepared.is_none() {
            let now = desk.stamp();
            let ids = ids(desk, &pod["spec"]["initContainers"]);
            let (reason, message) = ("Completed", String::new());
            self.prepared = Some(Ended { code: 0, reason, message, since: now.clone(), until: now, ids });
        }
        // A container knows its pod's address before anybody else does.
        let mut seen = Value::clone(pod);
        seen["status"]["podIP"] = self.ip.as_str().into();
        seen["status"]["podIPs"] = json!([{"ip": self.ip}]);
        // The object was read by this very type when it was written.
        let seen: Pod = serde_json::from_value(seen).unwrap_or_default();
        let session = Session::new(Arc::clone(ground.shared), &format!("pod/{}", self.name));
        let what = (seen, self.namespace.as_str(), self.restarts);
        self.stage =
            Stage::Running(Live::start(ground.programs, ground.poke, session, what, desk.state.clock));
    }
}

/// New ids for containers, by name.
fn ids(desk: &mut Desk<'_>, containers: &Value) -> BTreeMap<String, String> {
    let names = containers.as_array().into_iter().flatten().filter_map(|c| c["name"].as_str());
    names
        .map(|name| {
            let id = desk.state.ids.uid().replace('-', "");
            (name.to_string(), format!("containerd://{id}{id}"))
        })
        .collect()
}

/// SIGTERM, and SIGKILL when the grace period is over.
fn stop(desk: &mut Desk<'_>, live: &mut Live, by: &mut Option<Instant>, pod: &Value) {
    let grace = pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
    let until = desk.now + Duration::from_secs(grace);
    // A later request may shorten it.
    let end = by.map_or(until, |by| by.min(until));
    *by = Some(end);
    live.tell_to_stop();
    if end <= desk.now {
        live.kill();
    } else if live.exit().is_none() {
        desk.wake(end);
    }
}

/// Why a volume of a pod cannot be mounted, in the kubelet's words.
fn unmountable(desk: &Desk<'_>, pod: &Value) -> Option<String> {
    let namespace = meta(pod, "namespace");
    let missing = |source: &Value, what: &str, field: &str| {
        let kind = if what == "secret" { desk.at.secrets } else { desk.at.config_maps };
        let name = source[what][field].as_str()?;
        let wanted = source[what]["optional"] != true && desk.get(kind, namespace, name).is_none();
        wanted.then(|| format!("{what} {name:?} not found").to_lowercase())
    };
    pod["spec"]["volumes"].as_array().into_iter().flatten().find_map(|volume| {
        let projected = volume["projected"]["sources"].as_array().into_iter().flatten();
        let words = missing(volume, "secret", "secretName")
            .or_else(|| missing(volume, "configMap", "name"))
            .or_else(|| {
                projected
                    .into_iter()
                    .find_map(|s| missing(s, "secret", "name").or_else(|| missing(s, "configMap", "name")))
            })?;
        let name = volume["name"].as_str().unwrap_or_default();
        Some(format!("MountVolume.SetUp failed for volume {name:?} : {words}"))
    })
}
