//! The Kubernetes client. Reads the kubeconfig or the pod's ServiceAccount; opens no connection yet.

use anyhow::Context;
use std::time::Duration;

/// How long a connection to the API server may take to open.
const CONNECT: Duration = Duration::from_secs(10);
/// How long a write to an open connection may hang.
const WRITE: Duration = Duration::from_secs(30);
/// How long an open connection may say nothing while an answer is due. Longer than a watch lives without news (290 s,
/// after which the server ends it), so that it never cuts a healthy watch, and bounded, so that no read hangs for ever.
const READ: Duration = Duration::from_secs(305);

/// Installs the process's TLS provider. Harmless when one is installed already.
pub fn install_tls() {
    // An error only says that a provider is there already, which is what is wanted.
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// A client for the cluster that this process runs in, or that the kubeconfig names.
///
/// Nothing is retried below the controllers: they have their own backoff, and a hidden second POST would make
/// "already exists" ambiguous. Errors: no usable configuration.
pub async fn connect() -> anyhow::Result<kube::Client> {
    install_tls();
    let mut config = kube::Config::infer().await.context(
        "no configuration for the Kubernetes API: run in a pod with a ServiceAccount, or set KUBECONFIG",
    )?;
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(WRITE);
    config.read_timeout = Some(READ);
    // Otherwise the time that a pooled connection sat idle would count against the next answer.
    config.reset_reader_on_write = true;
    config.default_retry = false;
    kube::Client::try_from(config).context("the configuration for the Kubernetes API cannot be used")
}
