//! Places for backups that tests use: the development cluster's S3 server, or a volume.

use crate::{
    cluster::{Cluster, variable},
    database::Db,
    namespace, objects,
    wait::seconds,
};
use anyhow::{Context, Result};
use holdfast_core::{Backup, BackupStore, conditions::types};
use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use std::path::PathBuf;
use tokio::sync::OnceCell;

/// Bucket of all tests; each namespace writes below a prefix of its own name.
pub const BUCKET: &str = "holdfast-e2e";

static BUCKET_MADE: OnceCell<()> = OnceCell::const_new();

/// An S3 server that the pods reach.
pub struct S3 {
    /// Address.
    pub endpoint: String,
    /// Its CA, PEM.
    pub ca: String,
    /// Key id.
    pub access: String,
    /// Key.
    pub secret: String,
    /// Folder in which the server keeps its buckets, where it can be seen from here.
    pub folder: Option<PathBuf>,
}

impl S3 {
    /// The S3 server of the development cluster; none on other clusters.
    pub fn find(cluster: &Cluster) -> Option<Self> {
        let folder = cluster.run.as_ref()?.join("s3");
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).ok().map(|s| s.trim().to_string());
        Some(Self {
            endpoint: variable("HOLDFAST_S3_ENDPOINT").unwrap_or_else(|| "https://172.30.0.1:7070".into()),
            ca: read("ca.crt")?,
            access: read("accessKeyId")?,
            secret: read("secretAccessKey")?,
            folder: Some(variable("HOLDFAST_S3_FOLDER").map_or_else(|| folder.join("data"), PathBuf::from)),
        })
    }

    /// The spec of a BackupStore, with Secrets named s3 and s3-ca.
    pub fn spec(&self, prefix: &str) -> Value {
        json!({"s3": {
            "bucket": BUCKET, "prefix": prefix, "endpoint": self.endpoint, "forcePathStyle": true,
            "credentialsSecretRef": {"name": "s3"}, "caSecretRef": {"name": "s3-ca"},
        }})
    }

    /// Makes the Secrets s3 and s3-ca in a namespace.
    pub async fn secrets(&self, cluster: &Cluster, namespace: &str) -> Result<()> {
        let keys = [("accessKeyId", self.access.as_str()), ("secretAccessKey", self.secret.as_str())];
        namespace::secret(cluster, namespace, "s3", &keys).await?;
        namespace::secret(cluster, namespace, "s3-ca", &[("ca.crt", &self.ca)]).await
    }
}

/// A BackupStore and, where they can be seen from here, its files.
pub struct Store {
    /// Name of the BackupStore.
    pub name: String,
    /// Folder that holds what is below the store's prefix.
    pub files: Option<PathBuf>,
}

/// Makes a BackupStore that suits the cluster (S3 where there is one, else a volume) and waits until it is Ready.
pub async fn make(cluster: &Cluster, namespace: &str, name: &str) -> Result<Store> {
    match S3::find(cluster) {
        Some(s3) => make_s3(cluster, namespace, name, &s3).await,
        None => make_volume(cluster, namespace, name).await,
    }
}

/// Makes a BackupStore on S3.
pub async fn make_s3(cluster: &Cluster, namespace: &str, name: &str, s3: &S3) -> Result<Store> {
    BUCKET_MADE.get_or_try_init(|| async { cluster.script("bucket", &[BUCKET]).await.map(|_| ()) }).await?;
    s3.secrets(cluster, namespace).await?;
    objects::apply::<BackupStore>(cluster, namespace, name, &s3.spec(namespace)).await?;
    ready(cluster, namespace, name).await?;
    let files = s3.folder.as_ref().map(|f| f.join(BUCKET).join(namespace));
    Ok(Store { name: name.into(), files })
}

/// Makes a BackupStore on a new volume.
pub async fn make_volume(cluster: &Cluster, namespace: &str, name: &str) -> Result<Store> {
    let claim = format!("{name}-store");
    claim_volume(cluster, namespace, &claim).await?;
    objects::apply::<BackupStore>(cluster, namespace, name, &json!({"volume": {"claimName": claim}})).await?;
    ready(cluster, namespace, name).await?;
    Ok(Store { name: name.into(), files: None })
}

/// Claims a volume that several nodes can write to.
pub async fn claim_volume(cluster: &Cluster, namespace: &str, claim: &str) -> Result<()> {
    // The default class of most clusters serves one node at a time.
    let class = variable("HOLDFAST_STORE_CLASS").or_else(|| cluster.run.as_ref().map(|_| "shared".into()));
    let mode = variable("HOLDFAST_STORE_ACCESS_MODE").unwrap_or_else(|| "ReadWriteMany".into());
    let body = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim},
        "spec": {"storageClassName": class, "accessModes": [mode], "resources": {"requests": {"storage": "2Gi"}}},
    });
    let claims = cluster.api::<PersistentVolumeClaim>(namespace);
    let applied = claims.patch(claim, &PatchParams::apply(crate::MANAGER), &Patch::Apply(&body)).await;
    applied.with_context(|| format!("claim {claim}"))?;
    Ok(())
}

/// Waits until a BackupStore is Ready.
pub async fn ready(cluster: &Cluster, namespace: &str, name: &str) -> Result<BackupStore> {
    objects::condition(&cluster.api::<BackupStore>(namespace), name, types::READY, "True", seconds(60)).await
}

/// Takes a backup and waits until it succeeded.
pub async fn backup(db: &Db, name: &str) -> Result<Backup> {
    objects::apply::<Backup>(&db.cluster, &db.namespace, name, &json!({"databaseRef": {"name": db.name}}))
        .await?;
    objects::succeeded(&db.cluster.api::<Backup>(&db.namespace), name, seconds(120)).await
}

impl Store {
    /// Folder of the history that a database writes to: `<namespace>/<database>/<system identifier>/<history>`.
    pub async fn history_folder(&self, db: &Db) -> Result<PathBuf> {
        let status = db.get().await?.status.unwrap_or_default();
        let files = self.files.clone().context("the store's files cannot be seen from here")?;
        Ok(files
            .join(&db.namespace)
            .join(&db.name)
            .join(status.system_identifier.context("no systemIdentifier")?)
            .join(status.history.context("no history")?))
    }
}
