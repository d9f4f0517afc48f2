//! A database as it runs undisturbed: its parts, its Services, who may connect and how.

use crate::{
    client_pod::ClientPod,
    database::{Db, spec},
    objects::{describe, holds},
    runner::Scene,
    wait::{Seen, seconds, until, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{conditions::types, names};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    coordination::v1::Lease,
    core::v1::{ConfigMap, PersistentVolumeClaim, Secret, Service, ServiceAccount},
    discovery::v1::EndpointSlice,
    policy::v1::PodDisruptionBudget,
    rbac::v1::{Role, RoleBinding},
};
use kube::{Api, Resource, ResourceExt, api::ListParams};

/// One instance: every child is there, the application gets in with what its Secret says, and nobody gets in otherwise.
pub async fn one_instance(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let db = Db::start(cluster, ns, "ledger", &spec(1)).await?;
    let object = db.get().await?;
    let uid = object.uid().context("no uid")?;

    owned::<ServiceAccount>(&db, &uid, &["ledger"]).await?;
    owned::<Role>(&db, &uid, &["ledger"]).await?;
    owned::<RoleBinding>(&db, &uid, &["ledger"]).await?;
    owned::<ConfigMap>(&db, &uid, &["ledger-config"]).await?;
    owned::<Service>(&db, &uid, &["ledger-rw", "ledger-ro", "ledger-r", "ledger-pods"]).await?;
    owned::<EndpointSlice>(&db, &uid, &["ledger-rw"]).await?;
    let secrets = ["ledger-app", "ledger-replication", "ledger-tls", "ledger-ca", "ledger-superuser"];
    owned::<Secret>(&db, &uid, &secrets).await?;
    owned::<StatefulSet>(&db, &uid, &["ledger"]).await?;
    cluster.api::<Lease>(ns).get("ledger-primary").await.context("Lease ledger-primary")?;
    let claims = db.claims().await?;
    ensure!(claims.len() == 1, "one instance has {} claims", claims.len());
    ensure!(
        claims.iter().all(|c: &PersistentVolumeClaim| c.owner_references().is_empty()),
        "a claim is owned"
    );
    let status = object.status.clone().unwrap_or_default();
    let data_set = status.data_set.clone().context("status.dataSet is empty")?;
    ensure!(
        claims[0].name_any() == names::claim(&data_set, "ledger", 0),
        "the claim is {}",
        claims[0].name_any()
    );

    // What tools read: kstatus and servicebinding.io.
    ensure!(status.observed_generation == object.metadata.generation, "observedGeneration is stale");
    ensure!(holds(&object, types::AVAILABLE), "not Available: {}", describe(&object));
    ensure!(!holds(&object, types::RECONCILING) && !holds(&object, types::STALLED), "{}", describe(&object));
    ensure!(status.primary.as_deref() == Some("ledger-0"), "primary is {:?}", status.primary);
    ensure!(
        status.binding.as_ref().map(|b| b.name.as_str()) == Some("ledger-app"),
        "binding is {:?}",
        status.binding
    );
    ensure!(
        status.server_version.as_deref().is_some_and(|v| v.starts_with("17")),
        "{:?}",
        status.server_version
    );
    let app = db.secret("ledger-app").await?;
    let keys = [
        "username",
        "user",
        "password",
        "host",
        "port",
        "dbname",
        "pgpass",
        "uri",
        "jdbc-uri",
        "fqdn-uri",
        "fqdn-jdbc-uri",
        "type",
        "provider",
        "database",
    ];
    for key in keys {
        ensure!(app.get(key).is_some_and(|v| !v.is_empty()), "Secret ledger-app has no {key}");
    }
    ensure!(app["type"] == "postgresql", "servicebinding.io's type is {}", app["type"]);

    // No password is where others can read it.
    let everything = ["get", "holdfast,pods,configmaps,statefulsets,jobs,events", "-n", ns, "-o", "json"];
    let text = cluster.kubectl(&everything).await?;
    for secret in ["ledger-app", "ledger-replication", "ledger-superuser"] {
        let entries = db.secret(secret).await?;
        let password = entries.get("password").with_context(|| format!("Secret {secret} has no password"))?;
        ensure!(!text.contains(password.as_str()), "the password of {secret} shows outside the Secret");
    }

    // As an application does it: the Secret mounted, the CA beside it.
    let mounts = [("ledger-app", "/app"), ("ledger-tls", "/tls")];
    let client = ClientPod::start(cluster, ns, "client", &mounts).await?;
    let connect = |options: &str| {
        format!(
            "umask 077; cp -f /app/pgpass /tmp/pgpass; chmod 600 /tmp/pgpass; psql -XqAt \"host=$(cat /app/host) port=$(cat /app/port) \
             dbname=$(cat /app/dbname) user=$(cat /app/username) sslrootcert=/tls/ca.crt connect_timeout=5 {options}\""
        )
    };
    let question = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    let strict = connect("passfile=/tmp/pgpass sslmode=verify-full require_auth=scram-sha-256");
    let said = client.sh(&strict, question).await.context("with the Secret, TLS verified, SCRAM required")?;
    ensure!(said.trim() == "t", "the connection is not encrypted: {said}");
    let joint = if app["uri"].contains('?') { '&' } else { '?' };
    let uri = format!("psql -XqAt \"$(cat /app/uri){joint}sslmode=verify-full&sslrootcert=/tls/ca.crt\"");
    let said = client.sh(&uri, "create table t (a int); insert into t values (7); select a from t").await?;
    ensure!(said.trim() == "7", "through uri: {said}");

    refused(
        client.sh(&connect("passfile=/tmp/pgpass sslmode=disable"), question).await,
        &["pg_hba.conf", "encryption"],
    )?;
    let wrong = "printf '*:*:*:*:wrong\\n' > /tmp/wrong; chmod 600 /tmp/wrong; ";
    let wrong = format!("{wrong}{}", connect("passfile=/tmp/wrong sslmode=verify-full"));
    refused(client.sh(&wrong, question).await, &["password authentication failed"])?;

    let not_scram = "select count(*) from pg_authid where rolpassword is not null and rolpassword not like 'SCRAM-SHA-256$%'";
    ensure!(db.superuser().await?.value(not_scram).await? == "0", "a password is not kept as SCRAM");

    for (series, least) in [
        ("holdfast_instance_ready", 1.0),
        ("holdfast_postgresql_up", 1.0),
        ("holdfast_postgresql_max_connections", 10.0),
        ("holdfast_postgresql_connections{state=\"idle in transaction\"}", 0.0),
        ("holdfast_postgresql_transactions_total{database=\"postgres\",outcome=\"committed\"}", 1.0),
        ("holdfast_postgresql_checksum_failures_total{database=\"postgres\"}", 0.0),
        ("holdfast_postgresql_database_size_bytes{database=\"postgres\"}", 1e6),
        ("holdfast_postgresql_checkpoints_total{kind=\"requested\"}", 0.0),
        ("holdfast_postgresql_wal_bytes_total", 1e6),
        ("holdfast_instance_archive_lag_seconds", 0.0),
        ("holdfast_failovers_total{cause=\"expired\"}", 0.0),
    ] {
        let value = db.metric("ledger-0", series).await?.with_context(|| format!("no series {series}"))?;
        ensure!(value >= least, "{series} is {value}");
    }
    Ok(())
}

fn refused(result: Result<String>, words: &[&str]) -> Result<()> {
    match result {
        Ok(said) => anyhow::bail!("it should have been refused, but said {said}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(words.iter().any(|w| text.contains(w)), "refused, but not for {words:?}: {text}");
            Ok(())
        }
    }
}

async fn owned<K>(db: &Db, uid: &str, names: &[&str]) -> Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + serde::de::DeserializeOwned
        + std::fmt::Debug,
{
    let api: Api<K> = db.cluster.api(&db.namespace);
    for name in names {
        let object = api.get(name).await.with_context(|| format!("{} {name}", K::kind(&())))?;
        let owned = object.owner_references().iter().any(|o| o.uid == uid);
        ensure!(owned, "{} {name} is not owned by the Database", K::kind(&()));
    }
    Ok(())
}

/// Three instances by default: two standbys stream, commits wait for one of them, `-ro` reads and only reads.
pub async fn three_instances(scene: Scene) -> Result<()> {
    let (cluster, ns) = (&scene.cluster, scene.namespace.as_str());
    let mut wanted = spec(3);
    // The promised defaults: three instances, and with them Required.
    wanted.as_object_mut().map(|o| o.remove("instances"));
    let db = Db::start(cluster, ns, "catalog", &wanted).await?;
    let client = ClientPod::start(cluster, ns, "client", &[]).await?;
    client.login(&db).await?;
    let object = db.get().await?;
    let status = object.status.clone().unwrap_or_default();
    let primary = db.primary().await?;
    let durability = status.durability.clone().context("status.durability is empty")?;
    ensure!(format!("{:?}", durability.mode) == "Required", "durability is {durability:?}");
    ensure!(holds(&object, types::CONSISTENT), "not Consistent: {}", describe(&object));

    let mut replicas = Vec::new();
    for (name, pod) in db.pods().await? {
        let label = |key: &str| pod.labels().get(key).cloned().unwrap_or_default();
        if name == primary {
            ensure!(label(names::LABEL_ROLE) == "primary", "{name} is labelled {}", label(names::LABEL_ROLE));
        } else {
            ensure!(label(names::LABEL_ROLE) == "replica", "{name} is labelled {}", label(names::LABEL_ROLE));
            ensure!(label(names::LABEL_SERVES_READS) == "true", "{name} does not serve reads");
            replicas.push(name);
        }
    }
    ensure!(replicas.len() == 2, "replicas are {replicas:?}");
    for replica in &replicas {
        let series = format!("holdfast_replication_lag_seconds{{standby=\"{replica}\",stage=\"flush\"}}");
        let lag = db.metric(&primary, &series).await?;
        ensure!(lag.is_some_and(|lag| lag < 30.0), "{primary} says of {replica}: {lag:?} s behind");
    }
    let lease = cluster.api::<Lease>(ns).get("catalog-primary").await?;
    let holder = lease.spec.and_then(|s| s.holder_identity).unwrap_or_default();
    ensure!(!holder.is_empty(), "the Lease has no holder");
    let budgets = cluster.api::<PodDisruptionBudget>(ns).list(&ListParams::default()).await?;
    ensure!(!budgets.items.is_empty(), "there is no PodDisruptionBudget");

    let superuser = db.superuser().await?;
    let streaming = "select count(*) from pg_stat_replication where state = 'streaming' and sync_state in ('sync', 'quorum')";
    ensure!(superuser.value(streaming).await? == "2", "not two synchronous standbys stream");
    let names = superuser.value("show synchronous_standby_names").await?;
    ensure!(!names.is_empty(), "synchronous_standby_names is empty");
    let own = superuser.value("select system_identifier from pg_control_system()").await?;
    ensure!(
        Some(own) == status.system_identifier,
        "status.systemIdentifier is {:?}",
        status.system_identifier
    );

    client
        .psql(&db, "rw", "create table item (id int); insert into item select generate_series(1, 100)")
        .await?;
    wait_for("the rows through -ro", seconds(10), || async {
        let said = client.psql(&db, "ro", "select count(*), pg_is_in_recovery() from item").await?;
        Ok(if said == "100|t" { Seen::Yes(()) } else { Seen::NotYet(said) })
    })
    .await?;
    refused(client.psql(&db, "ro", "insert into item values (0)").await, &["read-only transaction"])?;
    until("every ready pod behind -r", seconds(10), || async {
        let labels = ListParams::default().labels("kubernetes.io/service-name=catalog-r");
        let list = cluster.api::<EndpointSlice>(ns).list(&labels).await?;
        let count = list.items.into_iter().flat_map(|s| s.endpoints).count();
        Ok((count != 3).then(|| format!("{count} endpoints")))
    })
    .await?;

    // At rest nothing is written: no generation moves, and desired objects keep their version.
    let versions = || async {
        let of = |version: Option<String>| version.unwrap_or_default();
        let set = of(cluster.api::<StatefulSet>(ns).get("catalog").await?.resource_version());
        let config = of(cluster.api::<ConfigMap>(ns).get("catalog-config").await?.resource_version());
        let service = of(cluster.api::<Service>(ns).get("catalog-rw").await?.resource_version());
        anyhow::Ok([set, config, service])
    };
    let before = versions().await?;
    tokio::time::sleep(seconds(5)).await;
    let after = versions().await?;
    ensure!(before == after, "StatefulSet, ConfigMap or Service was written at rest: {before:?} {after:?}");

    // kubectl scale sees the same numbers as people do.
    let scale =
        cluster.kubectl(&["get", "hfdb", "catalog", "-n", ns, "-o", "jsonpath={.status.selector}"]).await?;
    ensure!(scale.contains(names::LABEL_DATABASE), "status.selector is {scale}");
    Ok(())
}
