//! Agents ask each other: one line of JSON each way over mutual TLS, with the database's own CA on both sides.

use anyhow::Context;
use holdfast_core::{names, wire};
use holdfast_postgresql::failover::{Call, Vote};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{mpsc, oneshot},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, rustls};

/// Limit for one question, connection included.
const DEADLINE: Duration = Duration::from_millis(2500);
/// Longest line that is read.
const LONGEST: u64 = 16 * 1024;

/// A call that arrived, and where the promise goes.
pub struct Asked {
    /// The call.
    pub call: Call,
    /// The answer.
    pub reply: oneshot::Sender<Vote>,
}

struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Arc<rustls::RootCertStore>,
}

/// Reads the mounted certificate, anew for each connection: it may have been renewed.
fn identity() -> anyhow::Result<Identity> {
    let folder = Path::new(wire::TLS_FOLDER);
    let chain = CertificateDer::pem_file_iter(folder.join("tls.crt"))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(folder.join("tls.key"))?;
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(folder.join("ca.crt"))? {
        roots.add(certificate?)?;
    }
    Ok(Identity { chain, key, roots: Arc::new(roots) })
}

/// Answers peers until the process ends. Calls go to the main loop, which alone may promise.
pub async fn serve(calls: mpsc::Sender<Asked>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(("::", names::PORT_PEERS)).await;
    let listener = match listener {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", names::PORT_PEERS)).await.context("listening for peers")?,
    };
    loop {
        let (stream, _) = listener.accept().await?;
        let calls = calls.clone();
        tokio::spawn(async move {
            if let Err(error) = answer(stream, calls).await {
                tracing::debug!(%error, "peer");
            }
        });
    }
}

async fn answer(stream: TcpStream, calls: mpsc::Sender<Asked>) -> anyhow::Result<()> {
    let identity = identity()?;
    let verifier = rustls::server::WebPkiClientVerifier::builder(identity.roots).build()?;
    let config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain, identity.key)?;
    let work = async {
        let stream = TlsAcceptor::from(Arc::new(config)).accept(stream).await?;
        let (reader, mut writer) = tokio::io::split(stream);
        let mut line = String::new();
        BufReader::new(reader.take(LONGEST)).read_line(&mut line).await?;
        let (reply, promise) = oneshot::channel();
        calls.send(Asked { call: serde_json::from_str(&line)?, reply }).await?;
        let vote = promise.await?;
        writer.write_all(format!("{}\n", serde_json::to_string(&vote)?).as_bytes()).await?;
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    timeout(DEADLINE, work).await?
}

/// Asks one peer for its promise.
pub async fn ask(database: &str, namespace: &str, pod: &str, call: &Call) -> anyhow::Result<Vote> {
    let host = names::pod_host(database, namespace, pod);
    let identity = identity()?;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(identity.roots)
        .with_client_auth_cert(identity.chain, identity.key)?;
    let work = async {
        let stream = TcpStream::connect((host.as_str(), names::PORT_PEERS)).await?;
        let name = ServerName::try_from(host.clone())?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (reader, mut writer) = tokio::io::split(stream);
        writer.write_all(format!("{}\n", serde_json::to_string(call)?).as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(reader.take(LONGEST)).read_line(&mut line).await?;
        let vote: Vote = serde_json::from_str(&line)?;
        // The certificate proves the database, not the pod: the name in the answer must be the one that was asked.
        anyhow::ensure!(vote.pod == pod, "{host} answers as {}", vote.pod);
        Ok(vote)
    };
    timeout(DEADLINE, work).await.with_context(|| format!("{host} did not answer in time"))?
}
