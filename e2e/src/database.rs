//! A Database under test: make it, watch it, connect to it, look at its parts.

use crate::{
    cluster::Cluster,
    objects::{self, describe, holds},
    sql::{Login, Sql},
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, bail};
use holdfast_core::{Database, conditions::types, names};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{PersistentVolumeClaim, Pod, Secret},
    discovery::v1::EndpointSlice,
};
use kube::{Api, ResourceExt, api::ListParams};
use serde_json::{Value, json};
use std::{collections::BTreeMap, time::Duration};

/// A Database under test.
#[derive(Clone)]
pub struct Db {
    /// The cluster.
    pub cluster: Cluster,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// How long a Database may take to become ready on a small, busy machine.
pub const READY: Duration = seconds(120);

/// A spec with small requests, to be changed further by [`with`].
pub fn spec(instances: i32) -> Value {
    json!({
        "engine": "PostgreSQL",
        "version": "17",
        "instances": instances,
        "storage": {"size": "1Gi"},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}},
        "postgresql": {"superuser": "Enabled", "parameters": {"shared_buffers": "32MB"}},
    })
}

/// Merges `more` into `base`, deeply; null removes.
pub fn with(mut base: Value, more: &Value) -> Value {
    fn merge(into: &mut Value, from: &Value) {
        match (into, from) {
            (Value::Object(into), Value::Object(from)) => {
                for (key, value) in from {
                    if value.is_null() {
                        into.remove(key);
                        continue;
                    }
                    merge(into.entry(key.clone()).or_insert(Value::Null), value);
                }
            }
            (into, from) => *into = from.clone(),
        }
    }
    merge(&mut base, more);
    base
}

impl Db {
    /// A handle on a Database that exists or will.
    pub fn at(cluster: &Cluster, namespace: &str, name: &str) -> Self {
        Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() }
    }

    /// Applies a Database.
    pub async fn apply(cluster: &Cluster, namespace: &str, name: &str, spec: &Value) -> Result<Self> {
        objects::apply::<Database>(cluster, namespace, name, spec).await?;
        Ok(Self::at(cluster, namespace, name))
    }

    /// Applies a Database and waits until it is ready.
    pub async fn start(cluster: &Cluster, namespace: &str, name: &str, spec: &Value) -> Result<Self> {
        let db = Self::apply(cluster, namespace, name, spec).await?;
        db.ready().await?;
        Ok(db)
    }

    /// Its API.
    pub fn api(&self) -> Api<Database> {
        self.cluster.api(&self.namespace)
    }

    /// The object now.
    pub async fn get(&self) -> Result<Database> {
        self.api().get(&self.name).await.with_context(|| format!("Database {}", self.name))
    }

    /// Waits until it is Ready for its present generation, with every instance.
    pub async fn ready(&self) -> Result<Database> {
        wait_for(&format!("Database {} to be Ready", self.name), READY, || async {
            let object = self.get().await?;
            let status = object.status.clone().unwrap_or_default();
            let ready = status.instances.map_or(0, |i| i.ready);
            if holds(&object, types::READY) && ready == object.spec.instances {
                return Ok(Seen::Yes(object));
            }
            Ok(Seen::NotYet(format!("{ready} ready; {}", describe(&object))))
        })
        .await
    }

    /// Merges into the spec.
    pub async fn change(&self, spec: &Value) -> Result<Database> {
        objects::merge(&self.cluster, &self.namespace, &self.name, &json!({ "spec": spec })).await
    }

    /// The primary's pod by status.
    pub async fn primary(&self) -> Result<String> {
        let status = self.get().await?.status.unwrap_or_default();
        status.primary.with_context(|| format!("Database {} names no primary", self.name))
    }

    /// What one of the status' text fields says; an error when it is empty.
    pub async fn system_identifier(&self) -> Result<String> {
        let status = self.get().await?.status.unwrap_or_default();
        let id = status.system_identifier.filter(|s| !s.is_empty());
        id.with_context(|| format!("Database {} shows no systemIdentifier", self.name))
    }

    /// Waits until another pod than this is primary and the Service `-rw` leads to it. Returns its name.
    pub async fn primary_other_than(&self, old: &str, limit: Duration) -> Result<String> {
        wait_for(&format!("another primary than {old}"), limit, || async {
            let (pod, _) = self.behind_rw().await?;
            let primary = self.primary().await?;
            if pod != old && primary == pod {
                return Ok(Seen::Yes(pod));
            }
            Ok(Seen::NotYet(format!("-rw leads to {pod}, status names {primary}")))
        })
        .await
    }

    /// Database pods by name.
    pub async fn pods(&self) -> Result<BTreeMap<String, Pod>> {
        let selector = format!("{}={},{}=instance", names::LABEL_DATABASE, self.name, names::LABEL_COMPONENT);
        let list =
            self.cluster.api::<Pod>(&self.namespace).list(&ListParams::default().labels(&selector)).await?;
        Ok(list.items.into_iter().map(|p| (p.name_any(), p)).collect())
    }

    /// uids of the database pods by name.
    pub async fn pod_uids(&self) -> Result<BTreeMap<String, String>> {
        Ok(self.pods().await?.into_iter().map(|(name, pod)| (name, pod.uid().unwrap_or_default())).collect())
    }

    /// Its volumes' claims.
    pub async fn claims(&self) -> Result<Vec<PersistentVolumeClaim>> {
        let selector = format!("{}={}", names::LABEL_DATABASE, self.name);
        let api = self.cluster.api::<PersistentVolumeClaim>(&self.namespace);
        Ok(api.list(&ListParams::default().labels(&selector)).await?.items)
    }

    /// Names of the claims with this data-set-state.
    pub async fn claims_in_state(&self, state: &str) -> Result<Vec<String>> {
        let of = |c: &PersistentVolumeClaim| {
            c.labels().get(names::LABEL_DATA_SET_STATE).is_some_and(|s| s == state)
        };
        Ok(self.claims().await?.iter().filter(|c| of(c)).map(|c| c.name_any()).collect())
    }

    /// The operation Lease, if there is one.
    pub async fn operation_lease(&self) -> Result<Option<Lease>> {
        Ok(self.cluster.api::<Lease>(&self.namespace).get_opt(&names::lease_operation(&self.name)).await?)
    }

    /// Pod and address that the Service `-rw` leads to.
    pub async fn behind_rw(&self) -> Result<(String, String)> {
        let selector = format!("kubernetes.io/service-name={}", names::service_rw(&self.name));
        let api = self.cluster.api::<EndpointSlice>(&self.namespace);
        let slices = api.list(&ListParams::default().labels(&selector)).await?.items;
        let addresses: Vec<String> =
            slices.into_iter().flat_map(|s| s.endpoints).flat_map(|e| e.addresses).collect();
        let [address] = addresses.as_slice() else {
            bail!(
                "Service {} has {} endpoints instead of one: {addresses:?}",
                names::service_rw(&self.name),
                addresses.len()
            );
        };
        let of = |p: &Pod| p.status.as_ref().and_then(|s| s.pod_ip.as_ref()) == Some(address);
        let pod = self.pods().await?.into_iter().find(|(_, p)| of(p));
        let (name, _) = pod.with_context(|| format!("no pod has the address {address} that -rw leads to"))?;
        Ok((name, address.clone()))
    }

    /// A Secret's entries as text.
    pub async fn secret(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let secret = self.cluster.api::<Secret>(&self.namespace).get(name).await;
        let data = secret.with_context(|| format!("Secret {name}"))?.data.unwrap_or_default();
        Ok(data.into_iter().map(|(k, v)| (k, String::from_utf8_lossy(&v.0).into_owned())).collect())
    }

    /// The CA's certificate.
    pub async fn ca(&self) -> Result<String> {
        let mut tls = self.secret(&names::secret_tls(&self.name)).await?;
        tls.remove("ca.crt")
            .with_context(|| format!("Secret {} has no ca.crt", names::secret_tls(&self.name)))
    }

    async fn login(&self, pod: &str, secret: &str, database: &str) -> Result<Login> {
        let pods = self.pods().await?;
        let address = pods.get(pod).and_then(|p| p.status.as_ref()?.pod_ip.clone());
        let mut entries = self.secret(secret).await?;
        let mut entry =
            |key: &str| entries.remove(key).with_context(|| format!("Secret {secret} has no {key}"));
        Ok(Login {
            namespace: self.namespace.clone(),
            pod: pod.into(),
            address: address.with_context(|| format!("pod {pod} has no address"))?,
            server_name: names::rw_host(&self.name, &self.namespace),
            user: entry("username")?,
            password: entry("password")?,
            database: database.into(),
            ca: self.ca().await?.into_bytes(),
        })
    }

    /// Connects as the application to the pod behind `-rw`.
    pub async fn app(&self) -> Result<Sql> {
        let (pod, _) = self.behind_rw().await?;
        self.app_on(&pod).await
    }

    /// Connects as the application to this pod.
    pub async fn app_on(&self, pod: &str) -> Result<Sql> {
        let login = self.login(pod, &names::secret_app(&self.name), &self.app_database().await?).await?;
        Sql::connect(&self.cluster, &login).await
    }

    /// Connects as postgres to the pod behind `-rw`.
    pub async fn superuser(&self) -> Result<Sql> {
        let (pod, _) = self.behind_rw().await?;
        self.superuser_on(&pod).await
    }

    /// Connects as postgres to this pod.
    pub async fn superuser_on(&self, pod: &str) -> Result<Sql> {
        let login = self.login(pod, &names::secret_superuser(&self.name), "postgres").await?;
        Sql::connect(&self.cluster, &login).await
    }

    async fn app_database(&self) -> Result<String> {
        Ok(self.get().await?.spec.postgresql.database)
    }

    /// Makes a table with rows 1 to n, commits.
    pub async fn fill(&self, table: &str, rows: u32) -> Result<()> {
        let sql = format!(
            "create table {table} (id int primary key, note text not null); \
             insert into {table} select n, md5(n::text) from generate_series(1, {rows}) n"
        );
        self.app().await?.run(&sql).await
    }

    /// Number of rows in a table, on the primary. Tries for half a minute, since a failover may just be over.
    pub async fn count(&self, table: &str) -> Result<u64> {
        let sql = format!("select count(*) from {table}");
        wait_for(&format!("rows of {table}"), seconds(30), || async {
            let text = self.app().await?.value(&sql).await?;
            Ok(Seen::Yes(text.parse()?))
        })
        .await
    }

    /// What a series of an instance's metrics says now; `series` with its labels as they are shown. None: there is no such series.
    pub async fn metric(&self, pod: &str, series: &str) -> Result<Option<f64>> {
        let path =
            format!("/api/v1/namespaces/{}/pods/{pod}:{}/proxy/metrics", self.namespace, names::PORT_METRICS);
        let text = self.cluster.get_text(&path).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.map(str::parse).transpose()?)
    }

    /// The server's time, with microseconds, RFC 3339.
    pub async fn server_time(&self) -> Result<String> {
        let sql = "select to_char(clock_timestamp() at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')";
        self.app().await?.value(sql).await
    }

    /// Waits until every pod shows a table with so many rows.
    pub async fn everywhere(&self, table: &str, rows: u64, limit: Duration) -> Result<()> {
        let sql = format!("select count(*) from {table}");
        for pod in self.pods().await?.into_keys() {
            wait_for(&format!("{rows} rows of {table} on {pod}"), limit, || async {
                let text = self.app_on(&pod).await?.value(&sql).await?;
                Ok(if text == rows.to_string() {
                    Seen::Yes(())
                } else {
                    Seen::NotYet(format!("{text} rows"))
                })
            })
            .await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_merge_deeply_and_null_removes() {
        let base = json!({"storage": {"size": "1Gi", "storageClassName": "fast"}, "instances": 3});
        let merged = with(base, &json!({"storage": {"storageClassName": null}, "stopped": true}));
        assert_eq!(merged, json!({"storage": {"size": "1Gi"}, "instances": 3, "stopped": true}));
    }
}
