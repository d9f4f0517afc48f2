//! A client as users have them: a restricted pod in the cluster that reaches the database through its Services.

use crate::{
    SYSTEM,
    cluster::{Cluster, variable},
    database::Db,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result};
use holdfast_core::names;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Pod};
use kube::api::PostParams;
use serde_json::{Value, json};
use std::collections::BTreeMap;

/// Image with psql and pgbench: HOLDFAST_CLIENT_IMAGE, else what the database operator runs as version 17.
pub async fn image(cluster: &Cluster) -> Result<String> {
    if let Some(image) = variable("HOLDFAST_CLIENT_IMAGE") {
        return Ok(image);
    }
    let catalogue = catalogue(cluster).await?;
    catalogue
        .get("17")
        .cloned()
        .context("the database operator's image catalogue has no 17: set HOLDFAST_CLIENT_IMAGE")
}

/// The database operator's images by version.
pub async fn catalogue(cluster: &Cluster) -> Result<BTreeMap<String, String>> {
    let deployment = cluster.api::<Deployment>(SYSTEM).get("database-operator").await?;
    let pod = deployment.spec.and_then(|s| s.template.spec).unwrap_or_default();
    let variables = pod.containers.into_iter().flat_map(|c| c.env.unwrap_or_default());
    let images = variables.into_iter().find(|v| v.name == "HOLDFAST_POSTGRES_IMAGES").and_then(|v| v.value);
    serde_json::from_str(&images.unwrap_or_else(|| "{}".into())).context("HOLDFAST_POSTGRES_IMAGES")
}

/// A pod with PostgreSQL's client programs.
#[derive(Clone)]
pub struct ClientPod {
    /// The cluster.
    pub cluster: Cluster,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ClientPod {
    /// Starts the pod; each (Secret, folder) is mounted.
    pub async fn start(
        cluster: &Cluster,
        namespace: &str,
        name: &str,
        secrets: &[(&str, &str)],
    ) -> Result<Self> {
        let volumes: Vec<Value> = secrets
            .iter()
            .enumerate()
            .map(|(n, (secret, _))| json!({"name": format!("secret-{n}"), "secret": {"secretName": secret, "defaultMode": 0o440}}))
            .collect();
        let mounts: Vec<Value> = secrets
            .iter()
            .enumerate()
            .map(|(n, (_, folder))| json!({"name": format!("secret-{n}"), "mountPath": folder, "readOnly": true}))
            .collect();
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app": name}},
            "spec": {
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": false,
                "securityContext": {
                    "runAsNonRoot": true, "runAsUser": 999, "runAsGroup": 999, "fsGroup": 999,
                    "seccompProfile": {"type": "RuntimeDefault"},
                },
                "containers": [{
                    "name": "client", "image": image(cluster).await?, "command": ["sleep", "infinity"], "volumeMounts": mounts,
                    "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
                    "resources": {"requests": {"cpu": "10m", "memory": "32Mi"}},
                }],
                "volumes": volumes,
            },
        }))?;
        let api = cluster.api::<Pod>(namespace);
        api.create(&PostParams::default(), &pod).await.context("creating the client pod")?;
        wait_for(&format!("client pod {name} to run"), seconds(60), || async {
            let status = api.get(name).await?.status.unwrap_or_default();
            let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(if ready { Seen::Yes(()) } else { Seen::NotYet(format!("{:?}", status.phase)) })
        })
        .await?;
        Ok(Self { cluster: cluster.clone(), namespace: namespace.into(), name: name.into() })
    }

    /// Runs a script of sh in the pod, with this on standard input, and returns what it printed.
    pub async fn sh(&self, script: &str, input: &str) -> Result<String> {
        let arguments = ["exec", "-i", "-n", &self.namespace, &self.name, "--", "sh", "-euc", script];
        self.cluster.kubectl_with(&arguments, Some(input)).await
    }

    /// Puts the application's password and the CA of a database into the pod, for [`Self::target`].
    pub async fn login(&self, db: &Db) -> Result<()> {
        let secret = db.secret(&names::secret_app(&db.name)).await?;
        let field = |key: &str| {
            secret.get(key).cloned().unwrap_or_default().replace('\\', "\\\\").replace(':', "\\:")
        };
        let line = format!("*:*:*:{}:{}\n", field("username"), field("password"));
        let script = format!("umask 077; cat > /tmp/{}.pgpass", db.name);
        self.sh(&script, &line).await?;
        self.sh(&format!("cat > /tmp/{}.crt", db.name), &db.ca().await?).await?;
        Ok(())
    }

    /// A connection string to a Service of the database ("rw", "ro", "r"), verified, that notices a dead server within seconds.
    pub fn target(&self, db: &Db, service: &str) -> String {
        let name = &db.name;
        format!(
            "host={name}-{service} dbname=app user=app sslmode=verify-full sslrootcert=/tmp/{name}.crt \
             passfile=/tmp/{name}.pgpass connect_timeout=2 tcp_user_timeout=2000 \
             keepalives_idle=1 keepalives_interval=1 keepalives_count=2"
        )
    }

    /// Runs SQL through a Service and returns psql's bare output.
    pub async fn psql(&self, db: &Db, service: &str, sql: &str) -> Result<String> {
        let script = format!("psql -XqAt -v ON_ERROR_STOP=1 '{}'", self.target(db, service));
        Ok(self.sh(&script, sql).await?.trim().to_string())
    }
}
