//! Asking the API server: the definitions installed once, dry runs with strict validation.

use crate::{
    MANAGER,
    cluster::{Cluster, project},
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result, bail};
use holdfast_core::{Backup, BackupSchedule, BackupStore, Database, Restore};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Plural names of the kinds, as in API paths.
pub const PLURALS: [&str; 5] = ["databases", "backupstores", "backupschedules", "backups", "restores"];

static INSTALLED: OnceCell<()> = OnceCell::const_new();

/// Installs the definitions of deploy/crds, once, and waits until they are served.
pub async fn install(cluster: &Cluster) -> Result<()> {
    INSTALLED.get_or_try_init(|| install_now(cluster)).await.map(|_| ())
}

async fn install_now(cluster: &Cluster) -> Result<()> {
    let folder = project().join("deploy/crds").display().to_string();
    cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &folder]).await?;
    let api = cluster.cluster_api::<CustomResourceDefinition>();
    for plural in PLURALS {
        let name = format!("{plural}.holdfast.dev");
        wait_for(&format!("{name} to be served"), seconds(30), || async {
            let conditions = api.get(&name).await?.status.and_then(|s| s.conditions).unwrap_or_default();
            let done = conditions.iter().any(|c| c.type_ == "Established" && c.status == "True");
            Ok(if done { Seen::Yes(()) } else { Seen::NotYet("it is not".into()) })
        })
        .await?;
    }
    // The new rules reach the server's validation a moment after the definition says Established: `Local` is refused by one.
    let probe = json!({"databaseRef": {"name": "a"}, "schedule": "nonsense"});
    wait_for("the rules to be in force", seconds(20), || async {
        let refused = dry(cluster, "default", "BackupSchedule", "probe", &probe).await;
        Ok(if refused.is_err() { Seen::Yes(()) } else { Seen::NotYet("anything is taken".into()) })
    })
    .await
}

/// What the API calls a kind.
pub fn resource(kind: &str) -> Result<ApiResource> {
    Ok(match kind {
        "Database" => ApiResource::erase::<Database>(&()),
        "BackupStore" => ApiResource::erase::<BackupStore>(&()),
        "BackupSchedule" => ApiResource::erase::<BackupSchedule>(&()),
        "Backup" => ApiResource::erase::<Backup>(&()),
        "Restore" => ApiResource::erase::<Restore>(&()),
        _ => bail!("there is no kind {kind}"),
    })
}

/// Applies as kubectl does it, strictly; `dry` changes nothing.
pub async fn apply(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    name: &str,
    spec: &Value,
    dry: bool,
) -> Result<DynamicObject> {
    let resource = resource(kind)?;
    let body =
        json!({"apiVersion": resource.api_version, "kind": kind, "metadata": {"name": name}, "spec": spec});
    let mut parameters = PatchParams::apply(MANAGER).force().validation_strict();
    parameters.dry_run = dry;
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), namespace, &resource);
    Ok(api.patch(name, &parameters, &Patch::Apply(&body)).await?)
}

/// [`apply`] that changes nothing.
pub async fn dry(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    name: &str,
    spec: &Value,
) -> Result<DynamicObject> {
    apply(cluster, namespace, kind, name, spec, true).await
}

/// One thing that must be refused.
pub struct Bad {
    /// Kind.
    pub kind: &'static str,
    /// Name of the object.
    pub name: String,
    /// Spec.
    pub spec: Value,
    /// What the refusal must contain: the field, and what to do.
    pub words: &'static [&'static str],
}

/// Shorthand for [`Bad`].
pub fn bad(kind: &'static str, spec: Value, words: &'static [&'static str]) -> Bad {
    Bad { kind, name: "sample".into(), spec, words }
}

/// Every row must be refused with all of its words. All wrong rows are reported at once.
pub async fn all_refused(cluster: &Cluster, namespace: &str, table: Vec<Bad>) -> Result<()> {
    install(cluster).await?;
    let mut wrong = Vec::new();
    for row in &table {
        match dry(cluster, namespace, row.kind, &row.name, &row.spec).await {
            Ok(_) => wrong.push(format!("{} {} was taken: {}", row.kind, row.name, row.spec)),
            Err(error) => {
                let said = format!("{error:#}");
                let missing: Vec<_> = row.words.iter().filter(|w| !said.contains(**w)).collect();
                if !missing.is_empty() {
                    wrong.push(format!("{} {}: the refusal lacks {missing:?}: {said}", row.kind, row.spec));
                }
            }
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    bail!("{} of {}:\n  {}", wrong.len(), table.len(), wrong.join("\n  "))
}

/// Makes an object for real.
pub async fn made(
    cluster: &Cluster,
    namespace: &str,
    kind: &str,
    name: &str,
    spec: &Value,
) -> Result<DynamicObject> {
    install(cluster).await?;
    apply(cluster, namespace, kind, name, spec, false).await.with_context(|| format!("{kind} {name}"))
}
