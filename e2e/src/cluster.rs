//! The cluster under test: an API client, the kubectl program, and what is known of the machine it runs on.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::{
    Api, Client, Config, Resource,
    config::{KubeConfigOptions, Kubeconfig},
};
use std::{path::PathBuf, process::Stdio, sync::Arc, time::Duration};
use tokio::{io::AsyncWriteExt, process::Command};

/// A cluster to test on. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    /// API client; every call has a deadline.
    pub client: Client,
    /// Folder of the development cluster's state; none on a cluster that was already there.
    pub run: Option<PathBuf>,
    /// Whether pods' addresses can be reached from here. Else `kubectl port-forward` is used.
    pub direct: bool,
    kubectl: Arc<Vec<String>>,
    kubeconfig: Option<PathBuf>,
}

/// The project's folder.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}

/// An environment variable that is set and not empty.
pub fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|v| !v.is_empty())
}

impl Cluster {
    /// Connects to the cluster of KUBECONFIG; without it to the development cluster, or with CLUSTER=current to kubectl's
    /// current context.
    pub async fn connect() -> Result<Self> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let kubeconfig = kubeconfig().await?;
        let mut config = match &kubeconfig {
            Some(path) => {
                let read =
                    Kubeconfig::read_from(path).with_context(|| format!("reading {}", path.display()))?;
                Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?
            }
            None => Config::infer().await.context("no cluster: run `make cluster-up`, or set KUBECONFIG")?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        config.read_timeout = Some(Duration::from_secs(60));
        // Tests poll anyway; a retry inside the client would only hide how long an answer took.
        config.default_retry = false;
        let run = kubeconfig
            .as_ref()
            .and_then(|path| path.parent())
            .filter(|folder| folder.join("s3").join("ca.crt").exists())
            .map(PathBuf::from);
        let direct = match variable("HOLDFAST_DIRECT").as_deref() {
            Some("1") => true,
            Some(_) => false,
            None => run.is_some(),
        };
        let cluster = Self {
            client: Client::try_from(config)?,
            kubectl: Arc::new(kubectl(run.as_deref())),
            run,
            direct,
            kubeconfig,
        };
        let version = cluster.client.apiserver_version().await;
        version.context("the cluster's API server does not answer")?;
        Ok(cluster)
    }

    /// An API of namespaced objects.
    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client.clone(), namespace)
    }

    /// An API of objects without a namespace.
    pub fn cluster_api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = ClusterResourceScope>,
        K::DynamicType: Default,
    {
        Api::all(self.client.clone())
    }

    /// A kubectl command, not started yet. It ends with the handle.
    pub fn kubectl_command(&self, arguments: &[&str]) -> Command {
        let (program, first) =
            self.kubectl.split_first().map_or(("kubectl", &[][..]), |(p, f)| (p.as_str(), f));
        let mut command = Command::new(program);
        command.args(first).args(arguments).kill_on_drop(true).stdin(Stdio::null());
        // kubectl remembers which kinds there are; what it saw before the operators' were there is out of date. Where it can keep
        // nothing it asks anew, which takes a tenth of a second.
        command.env("KUBECACHEDIR", "/dev/null/none");
        if let Some(path) = &self.kubeconfig {
            command.env("KUBECONFIG", path);
        }
        command
    }

    /// Runs kubectl and returns what it printed; an error carries its words. Deadline: one minute.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.kubectl_with(arguments, None).await
    }

    /// As [`Self::kubectl`], with something on standard input.
    pub async fn kubectl_with(&self, arguments: &[&str], input: Option<&str>) -> Result<String> {
        let what = || format!("kubectl {}", arguments.join(" "));
        let mut command = self.kubectl_command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        if input.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut child = command.spawn().with_context(what)?;
        let pipe = child.stdin.take();
        let work = async {
            if let (Some(mut pipe), Some(text)) = (pipe, input) {
                pipe.write_all(text.as_bytes()).await?;
            }
            child.wait_with_output().await
        };
        let output = tokio::time::timeout(Duration::from_secs(60), work).await;
        let output =
            output.with_context(|| format!("{} took more than a minute", what()))?.with_context(what)?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "{}: {} {}", what(), out.trim(), err.trim());
        Ok(out.into_owned())
    }

    /// Runs a script of the development cluster, `e2e/cluster/<name>`, and returns what it printed; an error carries its words.
    /// Deadline: one minute.
    pub async fn script(&self, name: &str, arguments: &[&str]) -> Result<String> {
        let what = || format!("{name} {}", arguments.join(" "));
        let mut command = Command::new(project().join("e2e/cluster").join(name));
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        if let Some(cache) = self.run.as_ref().and_then(|run| run.parent()) {
            command.env("HOLDFAST_CACHE", cache);
        }
        let output = tokio::time::timeout(Duration::from_secs(60), command.output()).await;
        let output =
            output.with_context(|| format!("{} took more than a minute", what()))?.with_context(what)?;
        ensure!(output.status.success(), "{}: {}", what(), String::from_utf8_lossy(&output.stderr).trim());
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Gets a path of the API server as text, such as a pod's port through the proxy.
    pub async fn get_text(&self, path: &str) -> Result<String> {
        let request = http::Request::get(path).body(Vec::new())?;
        let answer = tokio::time::timeout(Duration::from_secs(10), self.client.request_text(request)).await;
        answer.with_context(|| format!("{path} took more than 10 s"))?.with_context(|| path.to_string())
    }
}

async fn kubeconfig() -> Result<Option<PathBuf>> {
    if let Some(path) = variable("KUBECONFIG") {
        return Ok(Some(path.into()));
    }
    let script = project().join("e2e/cluster/kubeconfig");
    if variable("CLUSTER").as_deref() == Some("current") || !script.exists() {
        return Ok(None);
    }
    let output = Command::new(&script).output().await.with_context(|| script.display().to_string())?;
    let path = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    if !path.exists() {
        bail!(
            "the development cluster is not up: run `make cluster-up`, or set CLUSTER=current for kubectl's current context"
        );
    }
    Ok(Some(path))
}

/// KUBECTL, else the program in PATH, else the one that the development cluster brings.
fn kubectl(run: Option<&std::path::Path>) -> Vec<String> {
    if let Some(text) = variable("KUBECTL") {
        return text.split_whitespace().map(String::from).collect();
    }
    let own = run.and_then(|r| r.parent()).map(|cache| cache.join("bin/kube")).filter(|p| p.exists());
    match own {
        Some(path) => vec![path.display().to_string(), "kubectl".into()],
        None => vec!["kubectl".into()],
    }
}
