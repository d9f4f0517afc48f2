//! The story of a database from its first second to its second life, on a cluster to which the operators are deployed.

use anyhow::{Context, Result, bail, ensure};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore, conditions::types};
use holdfast_e2e::{
    SYSTEM,
    client_pod::ClientPod,
    cluster::Cluster,
    database::Db,
    namespace,
    objects::{self, Kind, current, describe, holds},
    store::{self, S3},
    tests::OPERATORS,
    wait::{Hopeless, Seen, say, seconds, wait_for},
    writer::Writer,
};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Namespace, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use serde_json::json;
use std::{
    cell::RefCell,
    io::Write,
    process::ExitCode,
    time::{Duration, Instant},
};

/// Where the story takes place.
const NAMESPACE: &str = "demo";
/// The database of the story.
const DATABASE: &str = "shop";
/// pgbench's scale: 100,000 accounts each.
const SCALE: u32 = 5;

#[tokio::main]
async fn main() -> ExitCode {
    let teller = Teller::new();
    match story(&teller).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("\n\nThe demo stops here: {}", say(&error));
            println!(
                "What is there:  kubectl get holdfast,pods,jobs -n {NAMESPACE}; kubectl logs -n {SYSTEM} deployment/<operator>"
            );
            ExitCode::FAILURE
        }
    }
}

/// Prints one line a step: seconds since the beginning, what is done, what happens on the way, how it ended.
struct Teller {
    start: Instant,
    step: RefCell<(Instant, String)>,
}

impl Teller {
    fn new() -> Self {
        Self { start: Instant::now(), step: RefCell::new((Instant::now(), String::new())) }
    }

    fn begin(&self, what: &str) {
        print!("[{:6.1} s] {what}", self.start.elapsed().as_secs_f64());
        let _ = std::io::stdout().flush();
        self.step.replace((Instant::now(), String::new()));
    }

    /// Something changed on the way; the same word twice is told once.
    fn note(&self, word: &str) {
        let mut step = self.step.borrow_mut();
        if !word.is_empty() && step.1 != word {
            print!(" .. {word}");
            let _ = std::io::stdout().flush();
            step.1 = word.into();
        }
    }

    fn done(&self, how: &str) {
        let took = self.step.borrow().0.elapsed().as_secs_f64();
        println!("{}{how} ({took:.1} s)", if how.is_empty() { "" } else { " -> " });
    }

    fn say(&self, what: &str) {
        println!("[{:6.1} s] {what}", self.start.elapsed().as_secs_f64());
    }
}

async fn story(teller: &Teller) -> Result<()> {
    let cluster = Cluster::connect().await?;
    let version = cluster.client.apiserver_version().await?;
    teller.say(&format!(
        "Kubernetes {} answers; the operators, each a program of its own:",
        version.git_version
    ));
    for name in OPERATORS {
        operator(&cluster, teller, name).await?;
    }
    stage(&cluster, teller).await?;
    place(&cluster, teller).await?;
    let db = database(&cluster, teller).await?;

    teller.begin("A client pod connects to Service shop-rw with Secret shop-app; pgbench fills the database");
    let client = ClientPod::start(&cluster, NAMESPACE, "client", &[]).await?;
    client.login(&db).await?;
    let fill = format!("pgbench -i -q -s {SCALE} '{}' 2>&1", client.target(&db, "rw"));
    client.sh(&fill, "").await?;
    let accounts = db.count("pgbench_accounts").await?;
    ensure!(accounts == u64::from(SCALE) * 100_000, "pgbench_accounts has {accounts} rows");
    teller.done(&format!("{accounts} accounts"));

    backup(&db, teller).await?;
    let written = failover(&db, &client, teller).await?;
    restore(&db, teller, accounts, written).await?;
    epilogue(&db, teller);
    Ok(())
}

async fn operator(cluster: &Cluster, teller: &Teller, name: &str) -> Result<()> {
    let api = cluster.api::<Deployment>(SYSTEM);
    let deployment = wait_for(&format!("{name} to be ready"), seconds(60), || async {
        let object = api.get(name).await.context("is it deployed? `make deploy` does it")?;
        let ready = object.status.as_ref().and_then(|s| s.ready_replicas).unwrap_or_default();
        Ok(if ready >= 1 { Seen::Yes(object) } else { Seen::NotYet("no pod is ready".into()) })
    })
    .await?;
    let containers = deployment.spec.and_then(|s| s.template.spec).map(|s| s.containers).unwrap_or_default();
    let image = containers.first().and_then(|c| c.image.clone()).unwrap_or_default();
    teller.say(&format!("  {name} is ready: {image}"));
    Ok(())
}

/// A fresh namespace.
async fn stage(cluster: &Cluster, teller: &Teller) -> Result<()> {
    if cluster.cluster_api::<Namespace>().get_opt(NAMESPACE).await?.is_some() {
        teller.begin(&format!("Namespace {NAMESPACE} is there from an earlier run; deleting it"));
        namespace::delete(cluster, NAMESPACE).await?;
        teller.done("gone");
    }
    namespace::create(cluster, NAMESPACE).await?;
    teller.say(&format!("Namespace {NAMESPACE}, under the restricted Pod Security Standard"));
    Ok(())
}

/// A BackupStore: S3 where the cluster has it, else a volume.
async fn place(cluster: &Cluster, teller: &Teller) -> Result<()> {
    let spec = if let Some(s3) = S3::find(cluster) {
        teller.begin(&format!("BackupStore backups: bucket {} on {}, an own CA", store::BUCKET, s3.endpoint));
        cluster.script("bucket", &[store::BUCKET]).await?;
        s3.secrets(cluster, NAMESPACE).await?;
        // Each run writes below a prefix of its own: what an earlier one left there belongs to another database.
        s3.spec(&namespace::unique(NAMESPACE))
    } else {
        teller.begin("BackupStore backups: a volume");
        store::claim_volume(cluster, NAMESPACE, "backups").await?;
        json!({"volume": {"claimName": "backups"}})
    };
    objects::apply::<BackupStore>(cluster, NAMESPACE, "backups", &spec).await?;
    store::ready(cluster, NAMESPACE, "backups").await?;
    teller.done("written, read back and deleted a trial object: Ready");
    Ok(())
}

/// Follows an object to the end, telling its phases; ends early when it says that only a person can help.
async fn follow<K: Kind>(
    api: &Api<K>,
    name: &str,
    teller: &Teller,
    goal: &str,
    limit: Duration,
) -> Result<K> {
    let what = format!("{} {name} to be {goal}=True", K::kind(&()));
    wait_for(&what, limit, || async {
        let object = api.get(name).await?;
        if holds(&object, goal) {
            return Ok(Seen::Yes(object));
        }
        let final_false = current(&object, types::SUCCEEDED).is_some_and(|c| c.status == "False");
        if final_false && holds(&object, types::STALLED) {
            bail!(Hopeless(describe(&object)));
        }
        let phase =
            serde_json::to_value(&object)?["status"]["phase"].as_str().unwrap_or_default().to_string();
        teller.note(&phase);
        Ok(Seen::NotYet(describe(&object)))
    })
    .await
}

async fn database(cluster: &Cluster, teller: &Teller) -> Result<Db> {
    teller.begin("Database shop: PostgreSQL 17, three instances, WAL archived to the store");
    let spec = json!({
        "engine": "PostgreSQL", "version": "17", "instances": 3, "storage": {"size": "2Gi"},
        "archive": {"storeRef": {"name": "backups"}},
        "resources": {"requests": {"cpu": "100m", "memory": "256Mi"}},
    });
    let db = Db::apply(cluster, NAMESPACE, DATABASE, &spec).await?;
    follow::<Database>(&db.api(), DATABASE, teller, types::READY, seconds(120)).await?;
    let status = db.ready().await?.status.unwrap_or_default();
    let mode = status.durability.map(|d| format!("{:?}", d.mode)).unwrap_or_default();
    teller.done(&format!(
        "Ready: {} is primary, two standbys stream, durability {mode}",
        status.primary.as_deref().unwrap_or("nobody")
    ));
    Ok(db)
}

async fn backup(db: &Db, teller: &Teller) -> Result<()> {
    teller.begin("BackupSchedule nightly: 02:30 in Paris, and one right now");
    let spec = json!({
        "databaseRef": {"name": DATABASE}, "schedule": "30 2 * * *", "timeZone": "Europe/Paris", "immediate": true,
        "retention": {"days": 7},
    });
    objects::apply::<BackupSchedule>(&db.cluster, NAMESPACE, "nightly", &spec).await?;
    let api = db.cluster.api::<Backup>(NAMESPACE);
    let selector = ListParams::default().labels(&format!("{}=nightly", holdfast_core::names::LABEL_SCHEDULE));
    let name = wait_for("the schedule's first Backup", seconds(30), || async {
        let first = api.list(&selector).await?.items.into_iter().next();
        Ok(first.map_or_else(|| Seen::NotYet("none".into()), |b| Seen::Yes(b.name_any())))
    })
    .await?;
    teller.note(&name);
    let made = follow::<Backup>(&api, &name, teller, types::SUCCEEDED, seconds(180))
        .await?
        .status
        .unwrap_or_default();
    teller.done(&format!(
        "Succeeded, read back: {} from the database, {} in the store",
        megabytes(made.size),
        megabytes(made.stored_size)
    ));
    Ok(())
}

fn megabytes(bytes: Option<i64>) -> String {
    bytes.map_or_else(|| "an unknown size".into(), |b| format!("{:.1} MB", b as f64 / 1e6))
}

/// Kills the primary's pod under a writer. Returns how many rows that writer has left in its table.
async fn failover(db: &Db, client: &ClientPod, teller: &Teller) -> Result<u64> {
    let cluster = &db.cluster;
    let writer = Writer::start(client, db).await?;
    teller.begin("A client commits a row every 25 ms through shop-rw and remembers each acknowledged one");
    writer.acknowledged(80, seconds(30)).await?;
    teller.done(&format!("{} so far", writer.count()));

    let old = db.primary().await?;
    teller.begin(&format!("Killing the primary's pod {old}: kubectl delete pod --grace-period=0 --force"));
    let uid = db.pod_uids().await?.remove(&old);
    cluster.api::<Pod>(NAMESPACE).delete(&old, &DeleteParams::default().grace_period(0)).await?;
    let new = db.primary_other_than(&old, seconds(60)).await?;
    teller.note(&format!("{new} leads"));
    writer.acknowledged(80, seconds(60)).await?;
    teller.done("commits go on");

    teller.begin(&format!("{old} comes back by itself, as a standby"));
    let timeline = wait_for(&format!("{old} to follow {new}"), seconds(120), || async {
        let object = db.get().await?;
        let status = object.status.clone().unwrap_or_default();
        let member = status.members.iter().find(|m| m.name == old).cloned().unwrap_or_default();
        let back = db.pod_uids().await?.remove(&old) != uid && member.role == "Replica" && member.ready;
        teller.note(status.phase.as_deref().unwrap_or_default());
        let whole = back && holds(&object, types::READY);
        Ok(if whole {
            Seen::Yes(status.timeline.unwrap_or_default())
        } else {
            Seen::NotYet(describe(&object))
        })
    })
    .await?;
    teller.done(&format!("three instances again, timeline {timeline}"));
    let written = writer.stop().await?;
    written.none_missing(db).await?;
    teller.say(&format!(
        "  {} rows were acknowledged, not one is missing; writes were away for {:.1} s",
        written.ids.len(),
        written.longest_gap.as_secs_f64()
    ));
    db.count("acknowledged").await
}

async fn restore(db: &Db, teller: &Teller, accounts: u64, written: u64) -> Result<()> {
    let moment = db.server_time().await?;
    db.app().await?.run("drop table pgbench_accounts, acknowledged").await?;
    let gone = db.app().await?.value("select count(*) from pgbench_accounts").await;
    ensure!(gone.is_err(), "the table is still there");
    teller.say(&format!("A mistake: DROP TABLE pgbench_accounts, acknowledged. It was right until {moment}"));

    teller.begin("Restore undo: back to that moment, checked before it serves");
    let spec = json!({
        "databaseRef": {"name": DATABASE}, "pointInTime": {"time": moment},
        "checks": [{"name": "accounts", "sql": "select count(*) from pgbench_accounts", "expect": accounts.to_string()}],
    });
    objects::apply::<Restore>(&db.cluster, NAMESPACE, "undo", &spec).await?;
    let api = db.cluster.api::<Restore>(NAMESPACE);
    follow::<Restore>(&api, "undo", teller, types::SUCCEEDED, seconds(240)).await?;
    teller.done("Succeeded");
    db.ready().await?;
    let (accounts_now, written_now) = (db.count("pgbench_accounts").await?, db.count("acknowledged").await?);
    ensure!(accounts_now == accounts, "{accounts_now} of {accounts} accounts came back");
    ensure!(written_now == written, "{written_now} of {written} acknowledged rows came back");
    teller.say(&format!(
        "  {accounts_now} accounts and {written_now} of the client's rows are back: all of them"
    ));
    Ok(())
}

fn epilogue(db: &Db, teller: &Teller) {
    let minutes = teller.start.elapsed().as_secs_f64() / 60.0;
    println!("\nThat took {minutes:.1} minutes. The cluster is left running; look around:");
    if db.cluster.run.is_some() {
        println!("  {:<24} export KUBECONFIG=$(make -s kubeconfig)", "first");
    }
    for (what, how) in [
        ("everything", format!("kubectl get holdfast -n {NAMESPACE}")),
        ("why it is as it is", format!("kubectl describe hfdb {DATABASE} -n {NAMESPACE}")),
        (
            "how to connect",
            format!(
                "kubectl get secret {}-app -n {NAMESPACE} -o jsonpath='{{.data.uri}}' | base64 -d",
                db.name
            ),
        ),
        (
            "a session",
            format!(
                "kubectl exec -it -n {NAMESPACE} client -- psql \"host=shop-rw user=app dbname=app passfile=/tmp/shop.pgpass\""
            ),
        ),
        (
            "metrics of a database",
            format!("kubectl get --raw /api/v1/namespaces/{NAMESPACE}/pods/{DATABASE}-0:9187/proxy/metrics"),
        ),
        (
            "metrics of an operator",
            format!(
                "kubectl port-forward -n {SYSTEM} deployment/{} 8080, then http://127.0.0.1:8080/metrics",
                OPERATORS[0]
            ),
        ),
        ("the volumes from before", format!("kubectl get pvc -n {NAMESPACE} -L holdfast.dev/data-set-state")),
        ("end the story", format!("kubectl delete namespace {NAMESPACE}")),
        ("end the cluster", "make cluster-down".into()),
    ] {
        println!("  {what:<24} {how}");
    }
}
