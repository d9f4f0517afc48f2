//! The agents under the real operators.

use super::{Agents, Kind, Written};
use crate::operators::{Operator, Running};
use holdfast_core::{
    Backup, Database, Restore,
    conditions::{self, types},
    wire::WorkerResult,
};
use holdfast_testkit::{Server, cluster::Cluster};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::{
    Api, Client, Resource,
    api::{DeleteParams, Patch, PatchParams},
    core::NamespaceResourceScope,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{collections::BTreeSet, fmt::Debug, sync::Arc, time::Duration};
use tokio::time::{Instant, sleep};

const SPACE: &str = "mill";
const NAME: &str = "grain";

struct Town {
    server: Server,
    cluster: Cluster,
    agents: Agents,
    client: Client,
    _operators: Vec<Running>,
}

impl Town {
    fn new(operators: &[Operator]) -> Self {
        let server = Server::new("2026-03-01T10:00:00Z".parse().unwrap(), 7);
        server.register_holdfast().unwrap();
        server.namespace(SPACE);
        server.namespace("holdfast-system");
        let agents = Agents::new();
        let cluster = Cluster::start(&server, Arc::new(agents.clone()));
        let start = |which: &Operator| Running::start(*which, &server, server.session(which.name())).unwrap();
        let _operators = operators.iter().map(start).collect();
        let client = server.client("user", SPACE);
        Self { server, cluster, agents, client, _operators }
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), SPACE)
    }

    async fn apply<K>(&self, name: &str, mut body: Value) -> K
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + DeserializeOwned + Debug,
    {
        body["apiVersion"] = K::api_version(&()).into();
        body["kind"] = K::kind(&()).into();
        body["metadata"]["name"] = name.into();
        self.api::<K>().patch(name, &PatchParams::apply("user").force(), &Patch::Apply(body)).await.unwrap()
    }

    async fn database(&self, instances: i32, more: Value) {
        let mut spec = json!({"engine": "PostgreSQL", "version": "17", "instances": instances, "storage": {"size": "1Gi"}});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.apply::<Database>(NAME, json!({"spec": spec})).await;
    }

    async fn until(&self, what: &str, holds: impl AsyncFn() -> bool) {
        let begin = Instant::now();
        while !holds().await {
            if begin.elapsed() > Duration::from_secs(1200) {
                let database = self.api::<Database>().get_opt(NAME).await.unwrap();
                panic!("{what}: {:#?}\n{}", database.and_then(|d| d.status), self.agents.dump());
            }
            sleep(Duration::from_millis(500)).await;
        }
    }

    async fn ready(&self) {
        self.until("the Database is Ready", async || {
            let database = self.api::<Database>().get(NAME).await.unwrap();
            let all = database.status.map(|s| s.conditions).unwrap_or_default();
            conditions::is_true_for(&all, types::READY, database.metadata.generation)
        })
        .await;
    }

    async fn ended(&self, restore: &str, well: &str) {
        self.until("the Restore ended", async || {
            let status = self.api::<Restore>().get(restore).await.unwrap().status.unwrap_or_default();
            conditions::find(&status.conditions, types::SUCCEEDED).is_some_and(|c| c.status == well)
        })
        .await;
    }

    /// A database that archives, with a backup that holds the row `before`.
    async fn backed_up(&self) {
        let claim = json!({"spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "5Gi"}}}});
        self.apply::<PersistentVolumeClaim>("barn", claim).await;
        let store = json!({"spec": {"volume": {"claimName": "barn"}}});
        self.apply::<holdfast_core::BackupStore>("barn", store).await;
        self.database(2, json!({"archive": {"storeRef": {"name": "barn"}}})).await;
        self.ready().await;
        assert_eq!(self.write("before").await, Written::Acknowledged);
        self.backup("first").await;
    }

    async fn backup(&self, name: &str) {
        self.apply::<Backup>(
            name,
            json!({"spec": {"databaseRef": {"name": NAME}, "deletionPolicy": "Delete"}}),
        )
        .await;
        self.until("the Backup succeeded", async || {
            let status = self.api::<Backup>().get(name).await.unwrap().status.unwrap_or_default();
            conditions::is_true(&status.conditions, types::SUCCEEDED)
        })
        .await;
    }

    async fn write(&self, row: &str) -> Written {
        sleep(Duration::from_secs(1)).await;
        self.agents.write(SPACE, NAME, row, self.server.clock().now())
    }

    fn rows(&self) -> Vec<String> {
        self.agents.rows(SPACE, NAME).unwrap_or_default()
    }

    fn sound(&self) {
        assert_eq!(self.agents.problems(), Vec::<String>::new());
    }
}

#[tokio::test(start_paused = true)]
async fn three_instances_come_up_agree_and_come_to_rest() {
    let town = Town::new(&[Operator::Database]);
    town.database(3, json!({})).await;
    town.ready().await;
    assert_eq!(town.write("one").await, Written::Acknowledged);
    assert_eq!(town.rows(), ["one"]);
    // Everybody has reported the row's position after this.
    sleep(Duration::from_secs(130)).await;
    let before = town.server.writes().len();
    sleep(Duration::from_secs(600)).await;
    let writes: Vec<String> = town.server.writes()[before..]
        .iter()
        .filter(|w| w.resource != "leases.coordination.k8s.io")
        .map(|w| format!("{w:?}"))
        .collect();
    assert_eq!(writes, Vec::<String>::new(), "at rest only Leases are renewed");
    let dump = town.agents.dump();
    assert_eq!(dump.matches("rows one").count(), 3, "{dump}");
    assert!(
        dump.contains("volume mill/<data set 1>-grain-0: data set <data set 1>, system <system 1>"),
        "{dump}"
    );
    town.sound();
}

#[tokio::test(start_paused = true)]
async fn a_killed_primary_is_succeeded_by_one_that_has_every_commit() {
    let town = Town::new(&[Operator::Database]);
    town.database(3, json!({})).await;
    town.ready().await;
    town.until("a commit is safe", async || town.write("kept").await == Written::Acknowledged).await;
    let first = town.agents.primary(SPACE, NAME).unwrap();
    for node in ["node-1", "node-2", "node-3"] {
        let pods: Api<k8s_openapi::api::core::v1::Pod> = town.api();
        if pods.get(&first).await.unwrap().spec.unwrap().node_name.as_deref() == Some(node) {
            town.cluster.lose_node(node);
        }
    }
    town.until("another one leads", async || {
        town.agents.primary(SPACE, NAME).is_some_and(|now| now != first)
    })
    .await;
    assert!(town.rows().contains(&"kept".to_string()));
    for node in ["node-1", "node-2", "node-3"] {
        town.cluster.return_node(node);
    }
    town.ready().await;
    // A restart of its container alone is over before the others may take over.
    let second = town.agents.primary(SPACE, NAME).unwrap();
    assert!(town.cluster.kill(SPACE, &second));
    town.ready().await;
    town.sound();
}

#[tokio::test(start_paused = true)]
async fn a_parameter_that_needs_a_restart_replaces_every_pod_once_and_the_primary_last() {
    let town = Town::new(&[Operator::Database]);
    town.database(2, json!({})).await;
    town.ready().await;
    let first = town.agents.primary(SPACE, NAME).unwrap();
    let uids = async || -> BTreeSet<String> {
        let pods: Api<k8s_openapi::api::core::v1::Pod> = town.api();
        let list = pods.list(&Default::default()).await.unwrap();
        list.into_iter().filter_map(|p| p.metadata.uid).collect()
    };
    let before = uids().await;
    town.database(2, json!({"postgresql": {"parameters": {"work_mem": "9MB"}}})).await;
    town.ready().await;
    assert_eq!(uids().await, before, "a reload is enough");
    town.database(2, json!({"postgresql": {"parameters": {"max_connections": "50"}}})).await;
    town.until("all pods are new", async || uids().await.is_disjoint(&before)).await;
    town.ready().await;
    assert_ne!(town.agents.primary(SPACE, NAME).unwrap(), first);
    town.sound();
}

#[tokio::test(start_paused = true)]
async fn a_restore_in_place_brings_back_what_the_backup_and_the_wal_had() {
    let town = Town::new(&Operator::ALL);
    town.backed_up().await;
    town.write("after").await;
    let moment = town.server.clock().now();
    town.write("mistake").await;
    let spec = json!({"databaseRef": {"name": NAME}, "pointInTime": {"time": moment.to_string()}});
    town.apply::<Restore>("undo", json!({"spec": spec})).await;
    town.ended("undo", "True").await;
    town.ready().await;
    assert_eq!(town.rows(), ["before", "after"]);
    // What came after is another history's, and can be restored in turn.
    town.write("new").await;
    town.apply::<Restore>("again", json!({"spec": {"databaseRef": {"name": NAME}}})).await;
    town.ended("again", "True").await;
    town.ready().await;
    assert_eq!(town.rows(), ["before", "after", "new"]);
    town.sound();
    let dump = town.agents.dump();
    assert!(dump.contains("backup first: rows before\n"), "{dump}");
    assert!(dump.contains("from <history "), "{dump}");
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_fails_is_taken_back_and_loses_nothing() {
    let town = Town::new(&Operator::ALL);
    town.backed_up().await;
    town.write("after").await;
    let why =
        WorkerResult::Failed { reason: "CheckFailed".into(), message: "sums: no".into(), permanent: true };
    town.agents.fail_next(Kind::Restore, 1, &why);
    town.apply::<Restore>("undo", json!({"spec": {"databaseRef": {"name": NAME}}})).await;
    town.ended("undo", "False").await;
    town.ready().await;
    assert_eq!(town.rows(), ["before", "after"]);
    town.sound();
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_lost_is_given_again_and_the_restored_data_is_the_same() {
    let town = Town::new(&Operator::ALL);
    town.backed_up().await;
    town.agents.lose_answers(Kind::Restore, 1);
    town.agents.lose_answers(Kind::Backup, 1);
    let spec = json!({"newDatabase": {"name": "copy", "overrides": {"instances": 1}}, "source": {"backupRef": {"name": "first"}}});
    town.apply::<Restore>("twin", json!({"spec": spec})).await;
    town.ended("twin", "True").await;
    assert_eq!(town.agents.rows(SPACE, "copy").unwrap(), ["before"]);
    town.backup("second").await;
    town.sound();
}

#[tokio::test(start_paused = true)]
async fn a_backups_data_goes_with_it() {
    let town = Town::new(&Operator::ALL);
    town.backed_up().await;
    town.backup("second").await;
    assert!(town.agents.backups().contains("first"));
    town.api::<Backup>().delete("first", &DeleteParams::default()).await.unwrap();
    town.until("the data is gone", async || !town.agents.backups().contains("first")).await;
    assert!(town.agents.backups().contains("second"));
    town.sound();
}

#[tokio::test(start_paused = true)]
async fn the_same_run_has_the_same_end() {
    let run = async || {
        let town = Town::new(&Operator::ALL);
        town.backed_up().await;
        town.apply::<Restore>("undo", json!({"spec": {"databaseRef": {"name": NAME}}})).await;
        town.ended("undo", "True").await;
        town.ready().await;
        (town.agents.dump(), town.agents.problems())
    };
    assert_eq!(run().await, run().await);
}

/// An instance that runs on a volume, without a cluster around it.
fn instance(agents: &Agents, pod: &str, volume: &str) -> super::member::Key {
    let config = json!({"database": NAME, "namespace": SPACE, "databaseUid": "u1", "instances": 2, "dataSet": "d1234567",
        "history": "d7654321", "systemIdentifier": "", "version": "17", "appDatabase": "app", "appOwner": "app",
        "encoding": "UTF8", "locale": "C", "walSegmentSizeMb": 16, "superuser": false,
        "durability": {"mode": "Required", "standbys": 1}, "ttlSeconds": 6, "maxReplicaLagSeconds": 30,
        "parameters": {}, "pgHba": [], "memoryBytes": 0,
        "archive": {"store": {"volume": {"claimName": "barn"}}, "storeName": "barn", "maxLagSeconds": 300}});
    let config: holdfast_core::wire::AgentConfig = serde_json::from_value(config).unwrap();
    let key = (SPACE.to_string(), pod.to_string());
    agents.with(|world| {
        let program = world.number();
        world.volume(volume, &(SPACE.into(), format!("d1234567-{pod}")));
        world.lock(volume, program, pod);
        world.members.insert(key.clone(), super::member::Member::new(program, volume, Arc::new(config)));
    });
    key
}

#[tokio::test(start_paused = true)]
async fn what_must_not_happen_is_noted() {
    let now = "2026-03-01T10:00:00Z".parse().unwrap();
    let agents = Agents::new();
    let (a, b) = (instance(&agents, "grain-0", "v0"), instance(&agents, "grain-1", "v1"));
    agents.with(|world| {
        world.initialise(&a);
        world.accept(&a);
        assert!(world.copy(&b, &a));
        world.standby(&b);
        assert_eq!(world.stream(&b, "grain-0"), Some(true));
        let leader = world.members.get_mut(&a).unwrap();
        (leader.synchronous, leader.confirmations) = (vec!["grain-1".into()], 1);
        assert_eq!(world.write(SPACE, NAME, "safe", now), Written::Acknowledged);
        world.detach(&b);
        assert_eq!(world.write(SPACE, NAME, "alone", now), Written::Waits);
    });
    assert_eq!(agents.problems(), Vec::<String>::new());
    agents.with(|world| {
        world.promote(&b, now);
        world.lock("v0", 999, "pod other");
        world.initialise(&a);
        world.accept(&a);
        // Another data set's WAL of the same system and history.
        world.switch(&b, now);
        let other = world.data_mut(&a).unwrap();
        other.data_set = "d9999999".into();
        let stranger = world.data(&b).unwrap().system_identifier.clone();
        world.data_mut(&a).unwrap().system_identifier = stranger;
        world.switch(&a, now);
    });
    let problems = agents.problems().join("\n");
    for sign in [
        "grain-1 and grain-0 were primary of one data set at the same time",
        "pod other began on volume d1234567-grain-0 while grain-0 still used it",
        "grain was initialised a second time",
        "initdb on volume d1234567-grain-0, which held data",
        "grain-0 became primary without the acknowledged commit safe",
        "grain-0 cannot archive: the history belongs to data set d1234567, not d9999999",
    ] {
        assert!(problems.contains(sign), "{sign}: {problems}");
    }
}
