//! Agents ask each other: one line of JSON each way over mutual TLS, with the database's own CA on both sides.

use anyhow::Context;
use holdfast_core::{names, wire};
use holdfast_postgresql::failover::{Call, Stay, Stays, Vote};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
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

/// A question that arrived, and where the answer goes.
pub enum Asked {
    /// A candidate's call for a promise.
    Call(Call, oneshot::Sender<Vote>),
    /// Whether the holder may stay.
    Stay(Stay, oneshot::Sender<Stays>),
}

/// A question on the wire. An agent that does not know one closes the connection, which is no answer.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Question {
    Stay { stay: Stay },
    Call(Call),
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
        let answer = match serde_json::from_str(&line)? {
            Question::Call(call) => {
                let (reply, vote) = oneshot::channel();
                calls.send(Asked::Call(call, reply)).await?;
                serde_json::to_string(&vote.await?)?
            }
            Question::Stay { stay } => {
                let (reply, stays) = oneshot::channel();
                calls.send(Asked::Stay(stay, reply)).await?;
                serde_json::to_string(&stays.await?)?
            }
        };
        writer.write_all(format!("{answer}\n").as_bytes()).await?;
        writer.shutdown().await?;
        anyhow::Ok(())
    };
    timeout(DEADLINE, work).await?
}

/// Asks one peer for its promise.
pub async fn ask(database: &str, namespace: &str, pod: &str, call: &Call) -> anyhow::Result<Vote> {
    let host = names::pod_host(database, namespace, pod);
    let vote: Vote = question(&host, &Question::Call(call.clone()), DEADLINE).await?;
    // The certificate proves the database, not the pod: the name in the answer must be the one that was asked.
    anyhow::ensure!(vote.pod == pod, "{host} answers as {}", vote.pod);
    Ok(vote)
}

/// Asks one peer whether the holder may stay.
///
/// Errors: it does not agree, or does not answer within `limit`.
pub async fn agrees(
    database: &str,
    namespace: &str,
    pod: &str,
    stay: &Stay,
    limit: Duration,
) -> anyhow::Result<()> {
    let host = names::pod_host(database, namespace, pod);
    let answer: Stays = question(&host, &Question::Stay { stay: stay.clone() }, limit).await?;
    anyhow::ensure!(answer.pod == pod, "{host} answers as {}", answer.pod);
    anyhow::ensure!(answer.refused.is_empty(), "{pod} does not agree: {}", answer.refused);
    Ok(())
}

async fn question<T: DeserializeOwned>(
    host: &str,
    question: &Question,
    limit: Duration,
) -> anyhow::Result<T> {
    let identity = identity()?;
    let config = rustls::ClientConfig::builder()
        .with_root_certificates(identity.roots)
        .with_client_auth_cert(identity.chain, identity.key)?;
    let work = async {
        let stream = TcpStream::connect((host, names::PORT_PEERS)).await?;
        let name = ServerName::try_from(host.to_string())?;
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        let (reader, mut writer) = tokio::io::split(stream);
        writer.write_all(format!("{}\n", serde_json::to_string(question)?).as_bytes()).await?;
        let mut line = String::new();
        BufReader::new(reader.take(LONGEST)).read_line(&mut line).await?;
        anyhow::Ok(serde_json::from_str(&line)?)
    };
    timeout(limit, work).await.with_context(|| format!("{host} did not answer in time"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use holdfast_postgresql::failover::Holder;

    #[test]
    fn questions_are_told_apart_and_a_call_reads_as_ever() {
        let call = r#"{"term":5,"version":40,"leaseUid":"l1","candidate":"barn-2","dataSet":"d1"}"#;
        assert!(matches!(serde_json::from_str(call).unwrap(), Question::Call(Call { term: 5, .. })));
        let holder = Holder { pod: "barn-0".into(), uid: "u1".into(), nonce: "n1".into() };
        let stay = Stay { holder, term: 4, data_set: "d1".into() };
        let text = serde_json::to_string(&Question::Stay { stay: stay.clone() }).unwrap();
        assert!(matches!(serde_json::from_str(&text).unwrap(), Question::Stay { stay: s } if s == stay));
        assert!(serde_json::from_str::<Call>(&text).is_err(), "an agent of before takes it for nothing");
    }
}
