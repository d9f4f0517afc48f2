//! SQL from outside the cluster: always TLS, always verified against the database's own CA.

use crate::cluster::Cluster;
use anyhow::{Context, Result, anyhow, bail};
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use std::{future::Future, io, pin::Pin, process::Stdio, sync::Arc, task, time::Duration};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, BufReader, ReadBuf},
    net::TcpStream,
    process::Child,
    task::JoinHandle,
};
use tokio_postgres::{
    Config, SimpleQueryMessage,
    tls::{ChannelBinding, TlsConnect, TlsStream},
};

/// How long connecting may take.
const CONNECT: Duration = Duration::from_secs(5);
/// How long a statement may take.
const STATEMENT: Duration = Duration::from_secs(60);

/// Where and as whom to connect.
#[derive(Clone)]
pub struct Login {
    /// Namespace of the pod.
    pub namespace: String,
    /// The pod.
    pub pod: String,
    /// Its address.
    pub address: String,
    /// Name that the certificate must carry.
    pub server_name: String,
    /// Role.
    pub user: String,
    /// Password.
    pub password: String,
    /// Database.
    pub database: String,
    /// The CA, PEM.
    pub ca: Vec<u8>,
}

/// A connection.
pub struct Sql {
    client: tokio_postgres::Client,
    task: JoinHandle<()>,
    _forward: Option<Child>,
}

impl Drop for Sql {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Sql {
    /// Connects, in at most five seconds (more through a port-forward).
    pub async fn connect(cluster: &Cluster, login: &Login) -> Result<Self> {
        let (address, forward) = if cluster.direct {
            (format!("{}:5432", login.address), None)
        } else {
            let (address, child) = forward(cluster, login).await?;
            (address, Some(child))
        };
        let tls = Tls::new(&login.ca, &login.server_name)?;
        let mut config = Config::new();
        config
            .user(&login.user)
            .password(&login.password)
            .dbname(&login.database)
            .application_name("holdfast-e2e");
        let work = async {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
            config.connect_raw(stream, tls).await.map_err(plain)
        };
        let whom = || format!("connecting to {} at {address} as {}", login.pod, login.user);
        let (client, connection) = tokio::time::timeout(CONNECT, work)
            .await
            .map_err(|_| anyhow!("no answer within {CONNECT:?}"))
            .and_then(|r| r)
            .with_context(whom)?;
        let task = tokio::spawn(async move {
            // The error comes out of the statement that it interrupts, too.
            let _ = connection.await;
        });
        Ok(Self { client, task, _forward: forward })
    }

    /// Runs statements; deadline one minute.
    pub async fn run(&self, sql: &str) -> Result<()> {
        self.rows(sql).await.map(|_| ())
    }

    /// The first column of all rows, as text.
    pub async fn rows(&self, sql: &str) -> Result<Vec<String>> {
        let answer = tokio::time::timeout(STATEMENT, self.client.simple_query(sql)).await;
        let answer = answer.with_context(|| format!("{sql}: no answer within {STATEMENT:?}"))?;
        let messages = answer.map_err(plain).with_context(|| sql.to_string())?;
        Ok(messages
            .iter()
            .filter_map(|m| match m {
                SimpleQueryMessage::Row(row) => Some(row.get(0).unwrap_or_default().to_string()),
                _ => None,
            })
            .collect())
    }

    /// The first column of the first row, as text.
    pub async fn value(&self, sql: &str) -> Result<String> {
        let rows = self.rows(sql).await?;
        rows.into_iter().next().with_context(|| format!("{sql}: no row"))
    }
}

/// PostgreSQL's own words instead of "db error".
fn plain(error: tokio_postgres::Error) -> anyhow::Error {
    match error.as_db_error() {
        Some(db) => anyhow!("{}: {}", db.severity(), db.message()),
        None => error.into(),
    }
}

async fn forward(cluster: &Cluster, login: &Login) -> Result<(String, Child)> {
    let mut command = cluster.kubectl_command(&[
        "port-forward",
        "-n",
        &login.namespace,
        &format!("pod/{}", login.pod),
        ":5432",
    ]);
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("kubectl port-forward")?;
    let output = child.stdout.take().context("kubectl port-forward has no output")?;
    let mut lines = BufReader::new(output).lines();
    let line = tokio::time::timeout(Duration::from_secs(10), lines.next_line()).await;
    let line = line.context("kubectl port-forward says nothing")??.unwrap_or_default();
    // "Forwarding from 127.0.0.1:40123 -> 5432"
    let Some(address) = line.split_whitespace().find(|w| w.starts_with("127.0.0.1:")) else {
        bail!("kubectl port-forward to {} said: {line}", login.pod);
    };
    // A reader must stay, else the next line that it prints ends it.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    Ok((address.to_string(), child))
}

/// TLS for tokio-postgres by rustls.
#[derive(Clone)]
struct Tls {
    connector: tokio_rustls::TlsConnector,
    name: ServerName<'static>,
}

impl Tls {
    fn new(ca: &[u8], name: &str) -> Result<Self> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca) {
            roots.add(certificate.map_err(|e| anyhow!("ca.crt is not PEM: {e:?}"))?)?;
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self { connector: Arc::new(config).into(), name: ServerName::try_from(name.to_string())? })
    }
}

impl<S> TlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Encrypted<S>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Encrypted<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move { self.connector.connect(self.name, stream).await.map(Encrypted) })
    }
}

struct Encrypted<S>(tokio_rustls::client::TlsStream<S>);

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Encrypted<S> {
    fn channel_binding(&self) -> ChannelBinding {
        ChannelBinding::none()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Encrypted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Encrypted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
        buf: &[u8],
    ) -> task::Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
