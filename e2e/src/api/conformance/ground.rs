//! What a comparison stands on: the definitions under a group of their own, namespaces in which no controller writes.

use super::kinds::{self, CUSTOM, GROUP};
use crate::{
    MANAGER,
    cluster::Cluster,
    namespace,
    wait::{Seen, seconds, wait_for},
};
use anyhow::{Context, Result};
use holdfast_testkit::Server;
use http::Request;
use k8s_openapi::{
    api::core::v1::Namespace, apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::api::{DeleteParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Namespaces with this label are left alone by controllers.
const QUIET: &str = "holdfast.dev/quiet";
/// The policy that keeps controllers away.
const POLICY: &str = "holdfast-conformance";
/// Whose writes are part of the semantics: they are what deletion is made of.
const COLLECTORS: [&str; 3] =
    ["generic-garbage-collector", "namespace-controller", "pvc-protection-controller"];

static QUIETED: OnceCell<()> = OnceCell::const_new();
static INSTALLED: OnceCell<()> = OnceCell::const_new();

/// Installs, once, the policy by which nobody but the tests and the collectors writes in quiet namespaces.
pub async fn quiet(cluster: &Cluster) -> Result<()> {
    QUIETED.get_or_try_init(|| quiet_now(cluster)).await.map(|_| ())
}

async fn quiet_now(cluster: &Cluster) -> Result<()> {
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let request = Request::post("/apis/authentication.k8s.io/v1/selfsubjectreviews")
        .header(http::header::CONTENT_TYPE, super::steps::JSON)
        .body(serde_json::to_vec(&review)?)?;
    let who: Value = cluster.client.request(request).await.context("asking who we are")?;
    let own =
        who["status"]["userInfo"]["username"].as_str().context("the API server does not say who we are")?;
    let allowed: Vec<String> = COLLECTORS
        .iter()
        .map(|name| format!("system:serviceaccount:kube-system:{name}"))
        .chain([own.to_string()])
        .collect();
    let policy = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy", "metadata": {"name": POLICY},
        "spec": {
            "failurePolicy": "Fail",
            "matchConstraints": {
                "namespaceSelector": {"matchExpressions": [{"key": QUIET, "operator": "Exists"}]},
                "resourceRules": [{"apiGroups": ["*"], "apiVersions": ["*"], "resources": ["*/*"], "operations": ["CREATE", "UPDATE", "DELETE"], "scope": "Namespaced"}],
            },
            "validations": [{"expression": format!("request.userInfo.username in {}", json!(allowed)), "message": "quiet please"}],
        },
    });
    let binding = json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding", "metadata": {"name": POLICY},
        "spec": {"policyName": POLICY, "validationActions": ["Deny"]},
    });
    let both = format!("{policy}\n---\n{binding}");
    cluster.kubectl_with(&["apply", "--server-side", "--force-conflicts", "-f", "-"], Some(&both)).await?;
    // It is in force when somebody else is turned away.
    let probe = namespace::unique("quiet");
    create(cluster, &probe).await?;
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}}).to_string();
    let arguments = [
        "create",
        "--dry-run=server",
        "--as=quiet-probe",
        "--as-group=system:masters",
        "-n",
        &probe,
        "-f",
        "-",
    ];
    let waited = wait_for("the policy to be in force", seconds(20), || async {
        Ok(match cluster.kubectl_with(&arguments, Some(&map)).await {
            Err(error) if format!("{error:#}").contains("quiet please") => Seen::Yes(()),
            other => Seen::NotYet(format!("{other:?}")),
        })
    })
    .await;
    namespace::delete(cluster, &probe).await?;
    waited
}

/// A namespace in which no controller writes.
pub async fn create(cluster: &Cluster, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(
        json!({"metadata": {"name": name, "labels": {QUIET: "true", "holdfast.dev/test": "true"}}}),
    )?;
    let made = cluster.cluster_api::<Namespace>().create(&PostParams::default(), &namespace).await;
    made.with_context(|| format!("creating namespace {name}"))?;
    Ok(())
}

/// Installs the definitions, once.
pub async fn install(cluster: &Cluster) -> Result<()> {
    INSTALLED.get_or_try_init(|| install_now(cluster)).await.map(|_| ())
}

async fn install_now(cluster: &Cluster) -> Result<()> {
    let api = cluster.cluster_api::<CustomResourceDefinition>();
    for kind in &kinds::all()[..CUSTOM] {
        let name = format!("{}.{GROUP}", kind.plural);
        wait_for(&format!("an earlier {name} to be gone"), seconds(60), || async {
            let there = api.get_opt(&name).await?;
            let going = there.is_some_and(|d| d.metadata.deletion_timestamp.is_some());
            Ok(if going { Seen::NotYet("it is being deleted".into()) } else { Seen::Yes(()) })
        })
        .await?;
        let definition = kind.definition.as_ref().context("no definition in deploy/crds")?.to_string();
        let manager = format!("--field-manager={MANAGER}");
        cluster
            .kubectl_with(
                &["apply", "--server-side", "--force-conflicts", &manager, "-f", "-"],
                Some(&definition),
            )
            .await?;
    }
    for kind in &kinds::all()[..CUSTOM] {
        let name = format!("{}.{GROUP}", kind.plural);
        // A definition says that it is established a moment before it is served.
        wait_for(&format!("{name} to be served"), seconds(30), || async {
            let list = cluster.client.request::<Value>(Request::get(kind.path("default")).body(Vec::new())?);
            Ok(list.await.map_or_else(|e| Seen::NotYet(e.to_string()), |_| Seen::Yes(())))
        })
        .await?;
    }
    Ok(())
}

/// Waits until the garbage collector knows the definitions too: it looks every half minute.
pub async fn known_to_the_collector(cluster: &Cluster) -> Result<()> {
    let space = namespace::unique("collected");
    create(cluster, &space).await?;
    let waited = collected(cluster, &space).await;
    namespace::delete(cluster, &space).await?;
    waited
}

/// Waits until an object of each kind that is deleted in the foreground goes: that is the garbage collector's doing.
async fn collected(cluster: &Cluster, space: &str) -> Result<()> {
    let client = &cluster.client;
    let json_request =
        |request: http::request::Builder| request.header(http::header::CONTENT_TYPE, super::steps::JSON);
    for kind in &kinds::all()[..CUSTOM] {
        let mut body = kind.samples.first().cloned().unwrap_or_default();
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.kind.into();
        body["metadata"] = json!({"name": "probe"});
        let bytes = serde_json::to_vec(&body)?;
        wait_for(&format!("{} to be taken", kind.plural), seconds(20), || async {
            let request = json_request(Request::post(kind.path(space))).body(bytes.clone())?;
            let made = client.request::<Value>(request).await;
            Ok(made.map_or_else(|e| Seen::NotYet(e.to_string()), |_| Seen::Yes(())))
        })
        .await?;
        let options = json!({"propagationPolicy": "Foreground"});
        let request = json_request(Request::delete(format!("{}/probe", kind.path(space))));
        client.request::<Value>(request.body(serde_json::to_vec(&options)?)?).await?;
    }
    for kind in &kinds::all()[..CUSTOM] {
        wait_for(&format!("the garbage collector to know {}", kind.plural), seconds(90), || async {
            let got = client
                .request::<Value>(Request::get(format!("{}/probe", kind.path(space))).body(Vec::new())?)
                .await;
            Ok(match got {
                Err(kube::Error::Api(status)) if status.is_not_found() => Seen::Yes(()),
                _ => Seen::NotYet("it is still there".into()),
            })
        })
        .await?;
    }
    Ok(())
}

/// Takes the definitions away again.
pub async fn uninstall(cluster: &Cluster) -> Result<()> {
    let api = cluster.cluster_api::<CustomResourceDefinition>();
    for kind in &kinds::all()[..CUSTOM] {
        let name = format!("{}.{GROUP}", kind.plural);
        api.delete(&name, &DeleteParams::default()).await.with_context(|| format!("deleting {name}"))?;
    }
    Ok(())
}

/// The cluster's storage classes: claims without one get the default.
async fn classes(cluster: &Cluster) -> Result<&'static [Value]> {
    static CLASSES: OnceCell<Vec<Value>> = OnceCell::const_new();
    let read = || async {
        let request = Request::get("/apis/storage.k8s.io/v1/storageclasses").body(Vec::new())?;
        let mut list: Value = cluster.client.request(request).await.context("listing storage classes")?;
        Ok::<_, anyhow::Error>(list["items"].as_array_mut().map(std::mem::take).unwrap_or_default())
    };
    Ok(CLASSES.get_or_try_init(read).await?)
}

/// A server in memory with the same definitions, the same storage classes and the same namespace.
pub async fn in_memory(cluster: &Cluster, space: &str, seed: u64) -> Result<Server> {
    let server = Server::new(k8s_openapi::jiff::Timestamp::now(), seed);
    server.namespace(space);
    for kind in &kinds::all()[..CUSTOM] {
        let definition = kind.definition.as_ref().context("no definition in deploy/crds")?;
        server.register(definition).map_err(anyhow::Error::msg)?;
    }
    let client = server.client("conformance", space);
    for class in classes(cluster).await? {
        let mut class = class.clone();
        class["metadata"] =
            json!({"name": class["metadata"]["name"], "annotations": class["metadata"]["annotations"]});
        let request = Request::post("/apis/storage.k8s.io/v1/storageclasses");
        client.request::<Value>(request.body(serde_json::to_vec(&class)?)?).await?;
    }
    Ok(server)
}

/// Puts the namespace where a body names it.
pub fn with_namespace(body: &mut Value, space: &str) {
    match body {
        Value::String(text) if text == "{namespace}" => *text = space.into(),
        Value::Array(items) => items.iter_mut().for_each(|item| with_namespace(item, space)),
        Value::Object(fields) => fields.values_mut().for_each(|field| with_namespace(field, space)),
        _ => {}
    }
}
