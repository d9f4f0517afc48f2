//! A world in memory: every step is carried out in it, and the others answer.

use crate::{
    desired::Purpose,
    observe::{FollowUp, LivePod, Observed, SeenWorker},
    plan::{ATTEMPTS, Step, next_step},
    validate::Settings,
};
use holdfast_core::{
    BackupStore, Database, Restore,
    conditions::{self, Truth, types},
    ids, names, operation,
    pods::WorkerState,
    wire::{HistoryPath, WorkerResult},
};
use k8s_openapi::{api::core::v1::PersistentVolumeClaim, jiff::Timestamp};
use kube::ResourceExt;
use serde_json::json;
use std::time::Duration;

pub(super) const UID: &str = "5d7d7d2e-98a3-4b4f-8e38-3f6a3c1d2b10";
pub(super) const TOKEN: &str = "11111111-2222-3333-4444-555555555555";
pub(super) const SYSTEM: &str = "7501000000000000001";

pub(super) fn settings() -> Settings {
    Settings { agent_image: "holdfast/agent:1".into(), images: [("17".into(), "postgres:17".into())].into() }
}

pub(super) fn parse<T: serde::de::DeserializeOwned>(value: serde_json::Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub(super) fn database(name: &str, data_set: &str) -> Database {
    let ready = |type_: &str, status: &str| {
        json!({"type": type_, "status": status, "reason": "R", "message": "",
        "lastTransitionTime": "2026-11-20T00:00:00Z", "observedGeneration": 1})
    };
    parse(json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "Database",
        "metadata": {"name": name, "namespace": "shop", "uid": "db-uid", "generation": 1},
        "spec": {"engine": "PostgreSQL", "version": "17", "instances": 3, "storage": {"size": "10Gi", "storageClassName": "fast"},
            "durability": {"mode": "Required", "standbys": 1}, "archive": {"storeRef": {"name": "main"}}},
        "status": {"systemIdentifier": SYSTEM, "history": "dold0001", "dataSet": data_set,
            "conditions": [ready("Ready", "True"), ready("Available", "True")]},
    }))
}

pub(super) fn volume(data_set: &str, database: &str, ordinal: i32, state: &str) -> PersistentVolumeClaim {
    parse(
        json!({"metadata": {"name": names::claim(data_set, database, ordinal), "namespace": "shop", "uid": format!("pvc-{data_set}-{ordinal}"),
        "labels": {names::LABEL_DATABASE: database, names::LABEL_DATA_SET: data_set, names::LABEL_DATA_SET_STATE: state}},
        "spec": {"resources": {"requests": {"storage": "10Gi"}}}}),
    )
}

/// The world, and how the others in it behave.
pub(super) struct World {
    pub(super) o: Observed,
    pub(super) now: Timestamp,
    pub(super) plan: WorkerResult,
    pub(super) fill: WorkerResult,
    pub(super) trace: Vec<String>,
}

pub(super) fn planned(version: &str) -> WorkerResult {
    WorkerResult::Planned {
        history: HistoryPath {
            namespace: "shop".into(),
            database: "orders".into(),
            system_identifier: SYSTEM.into(),
            history: "dold0001".into(),
        },
        follows: None,
        backup_uid: "b-1".into(),
        bytes: 1 << 30,
        wal_segments: 12,
        timeline: 1,
        version: version.into(),
        database_spec: serde_json::to_value(database("orders", "dold").spec).unwrap(),
    }
}

pub(super) fn restored() -> WorkerResult {
    WorkerResult::Restored {
        time: "2026-11-21T09:12:59Z".into(),
        lsn: "0/7000000".into(),
        timeline: 2,
        system_identifier: SYSTEM.into(),
    }
}

pub(super) fn world(spec: serde_json::Value) -> World {
    let restore: Restore = parse(json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "Restore",
        "metadata": {"name": "undo", "namespace": "shop", "uid": UID, "generation": 1, "resourceVersion": "1"},
        "spec": spec,
    }));
    let in_place = restore.spec.database_ref.is_some();
    let store: BackupStore = parse(json!({
        "apiVersion": "holdfast.dev/v1alpha1", "kind": "BackupStore", "metadata": {"name": "main", "namespace": "shop"},
        "spec": {"volume": {"claimName": "backups"}},
        "status": {"conditions": [{"type": "Ready", "status": "True", "reason": "R", "message": "", "lastTransitionTime": "2026-11-20T00:00:00Z"}]},
    }));
    let o = Observed {
        restore,
        database: in_place.then(|| database("orders", "dold")),
        source_database: (!in_place).then(|| database("orders", "dold")),
        backup: None,
        store: Some(store),
        lease: None,
        claims: if in_place {
            (0..3).map(|n| volume("dold", "orders", n, "current")).collect()
        } else {
            Vec::new()
        },
        workers: Vec::new(),
        pods: Vec::new(),
        image: Some(("registry.example/postgres:17.2".into(), "17".into())),
        follow_up: FollowUp::Missing,
        refused: None,
    };
    let now = "2026-11-21T10:00:00Z".parse().unwrap();
    World { o, now, plan: planned("17"), fill: restored(), trace: Vec::new() }
}

pub(super) fn in_place() -> World {
    world(json!({"databaseRef": {"name": "orders"}, "pointInTime": {"time": "2026-11-21T09:13:00Z"}}))
}

pub(super) fn anew() -> World {
    world(json!({"newDatabase": {"name": "orders-copy", "overrides": {"instances": 1}},
        "source": {"database": {"name": "orders", "storeRef": {"name": "main"}}}}))
}

impl World {
    pub(super) fn own(&self) -> String {
        ids::data_set(UID)
    }

    pub(super) fn is(&self, type_: &str) -> Option<String> {
        let status = self.o.restore.status.as_ref()?;
        conditions::find(&status.conditions, type_).map(|c| format!("{} {}", c.status, c.reason))
    }

    pub(super) fn message(&self, type_: &str) -> String {
        let status = self.o.restore.status.clone().unwrap_or_default();
        conditions::find(&status.conditions, type_).map(|c| c.message.clone()).unwrap_or_default()
    }

    pub(super) fn set_database(&mut self, type_: &str, truth: Truth, message: &str) {
        let now = self.now;
        if let Some(database) = &mut self.o.database {
            let status = database.status.get_or_insert_default();
            conditions::set(
                &mut status.conditions,
                conditions::condition(type_, truth, "R", message, Some(1), now),
            );
        }
    }

    /// One step; None when it says that there is nothing left to do.
    pub(super) fn step(&mut self) -> Option<Duration> {
        let step = next_step(&settings(), &self.o, self.now).unwrap();
        let finalizers = self.o.restore.metadata.finalizers.get_or_insert_default();
        let word = match step {
            Step::Done => return None,
            Step::Wait(after) => return Some(after.max(Duration::from_secs(1))),
            Step::Report(status) => {
                self.o.restore.status = Some(*status);
                "report".to_string()
            }
            Step::AddFinalizer => {
                finalizers.push(names::FINALIZER.into());
                "+finalizer".into()
            }
            Step::RemoveFinalizer => {
                finalizers.retain(|f| f != names::FINALIZER);
                "-finalizer".into()
            }
            Step::CreateJob(job) => {
                let name = job.name_any();
                assert!(!self.o.workers.iter().any(|w| w.name == name), "a Job made twice");
                let token = job.labels().get(names::LABEL_OPERATION_TOKEN).cloned();
                self.o.pods.push(LivePod { name: format!("{name}-x"), job: name.clone(), token });
                let worker = SeenWorker {
                    uid: format!("uid-{name}"),
                    created: self.now,
                    ended: None,
                    deleting: false,
                    state: WorkerState::Running(None),
                    name,
                };
                self.o.workers.push(worker);
                "+job".into()
            }
            Step::CreateLease(mut lease) => {
                assert!(self.o.lease.is_none());
                lease.metadata.uid = Some(TOKEN.into());
                self.o.lease = Some(*lease);
                "+lease".into()
            }
            Step::CreateClaim(claim) => {
                let mut claim = *claim;
                claim.metadata.uid = Some("pvc-own".into());
                self.o.claims.push(claim);
                "+volume".into()
            }
            Step::HandOver { claim, labels, annotations } => {
                let claim = self.o.claims.iter_mut().find(|c| c.name_any() == claim.name_any()).unwrap();
                claim.metadata.labels.get_or_insert_default().extend(labels);
                claim.metadata.annotations.get_or_insert_default().extend(annotations);
                "hand over".into()
            }
            Step::Retire(claim) => {
                let claim = self.o.claims.iter_mut().find(|c| c.name_any() == claim.name_any()).unwrap();
                let labels = claim.metadata.labels.get_or_insert_default();
                labels.insert(names::LABEL_DATA_SET_STATE.into(), "retired".into());
                "retire".into()
            }
            Step::Release { uid, .. } => {
                assert_eq!(uid, TOKEN);
                assert!(self.o.pods.is_empty(), "the database starts while a worker writes");
                self.o.lease = None;
                "-lease".into()
            }
            Step::DeleteJob { name, .. } => {
                self.o.workers.retain(|w| w.name != name);
                "-job".into()
            }
            Step::DeleteClaim { name, .. } => {
                assert!(self.o.pods.is_empty(), "the volume goes while a worker writes");
                self.o.claims.retain(|c| c.name_any() != name);
                "-volume".into()
            }
            Step::CreateDatabase(made) => {
                let mut made = *made;
                made.metadata.uid = Some("new-uid".into());
                made.metadata.generation = Some(1);
                self.o.database = Some(made);
                "+database".into()
            }
            Step::CreateBackup(_) => {
                self.o.follow_up = FollowUp::Exists;
                "+backup".into()
            }
        };
        self.trace.push(word);
        Some(Duration::ZERO)
    }

    /// What kubelets and the database operator do meanwhile.
    pub(super) fn others(&mut self) {
        let (plan, fill, now) = (self.plan.clone(), self.fill.clone(), self.now);
        for worker in &mut self.o.workers {
            let is_plan = (1..=ATTEMPTS).any(|n| worker.name == Purpose::Plan.job_name(UID, n));
            if matches!(worker.state, WorkerState::Running(None)) {
                worker.state = WorkerState::Ended(if is_plan { plan.clone() } else { fill.clone() });
                worker.ended = Some(now);
            }
        }
        self.o.pods.clear();
        match self.o.lease.clone() {
            Some(lease) => {
                let token = operation::token(&lease).unwrap().to_string();
                self.set_database(types::QUIESCED, Truth::True, &operation::quiesced_message(&token));
                self.set_database(types::READY, Truth::False, "stopped");
            }
            None => {
                self.set_database(types::QUIESCED, Truth::False, "");
                self.set_database(types::READY, Truth::True, "");
                let own = self.own();
                let current = self.o.claims.iter().any(|c| {
                    c.labels().get(names::LABEL_DATA_SET) == Some(&own)
                        && c.labels()[names::LABEL_DATA_SET_STATE] == "current"
                });
                if let (true, Some(database)) = (current, &mut self.o.database) {
                    database.status.get_or_insert_default().data_set = Some(own);
                }
            }
        }
    }

    pub(super) fn run(&mut self) {
        self.run_until(|_| false);
    }

    pub(super) fn run_until(&mut self, stop: impl Fn(&World) -> bool) -> bool {
        for _ in 0..400 {
            if stop(self) {
                return true;
            }
            match self.step() {
                None => return false,
                Some(Duration::ZERO) => {}
                Some(after) => {
                    let before = self.o.clone();
                    self.others();
                    let still = format!("{before:?}") == format!("{:?}", self.o);
                    self.now = self.now.checked_add(after).unwrap();
                    if still && after >= Duration::from_secs(3600) {
                        return false;
                    }
                }
            }
        }
        if self.is(types::STALLED).is_some_and(|s| s.starts_with("True")) {
            return false;
        }
        panic!("no end: {:?} {:?}", self.trace, self.o.restore.status);
    }

    pub(super) fn acts(&self) -> String {
        self.trace.iter().filter(|w| *w != "report").cloned().collect::<Vec<_>>().join(", ")
    }

    pub(super) fn job(&self, purpose: Purpose) -> bool {
        (1..=ATTEMPTS).any(|n| self.o.workers.iter().any(|w| w.name == purpose.job_name(UID, n)))
    }

    /// Everything is as it was before, and the Restore says so.
    pub(super) fn assert_as_before(&self) {
        let own = self.own();
        assert!(self.o.lease.is_none() && !has_finalizer(self) && self.o.workers.is_empty());
        assert!(!self.o.claims.iter().any(|c| c.labels().get(names::LABEL_DATA_SET) == Some(&own)));
        assert!(self.o.claims.iter().all(|c| c.labels()[names::LABEL_DATA_SET_STATE] == "current"));
    }
}

pub(super) fn has_finalizer(w: &World) -> bool {
    w.o.restore.finalizers().iter().any(|f| f == names::FINALIZER)
}
