//! Sessions with PostgreSQL: with the pod's own server over its Unix socket, and with others over verified TLS.

use anyhow::Context;
use holdfast_core::{names, wire};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use std::{
    future::Future,
    path::Path,
    pin::Pin,
    sync::Arc,
    task::{self, Poll},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_postgres::{
    Client, NoTls, SimpleQueryMessage,
    tls::{ChannelBinding, MakeTlsConnect, TlsConnect, TlsStream},
};
use tokio_rustls::{client, rustls};

/// Limit for one short question.
const DEADLINE: Duration = Duration::from_secs(3);
/// Limit for getting a session with another host.
const CONNECT: Duration = Duration::from_secs(10);

/// A session. Its connection task ends with it.
pub struct Session {
    client: Client,
    task: tokio::task::JoinHandle<()>,
    limit: Duration,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Writes of the agent and its workers are small and must work while everybody else's are refused because the volume is full.
const WRITES: &str = "-c default_transaction_read_only=off";

/// A session with the pod's own server as role postgres. Its statements never wait for standbys: they must work while none is there.
pub async fn local(database: &str) -> anyhow::Result<Session> {
    local_within(database, Duration::from_secs(30)).await
}

/// As [`local`], with statements that the server itself ends after `limit`.
pub async fn local_within(database: &str, limit: Duration) -> anyhow::Result<Session> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(wire::RUN_FOLDER).user("postgres").dbname(database).application_name("holdfast-agent");
    config.options(format!(
        "{WRITES} -c synchronous_commit=local -c statement_timeout={} -c log_statement=none -c search_path=pg_catalog",
        limit.as_millis()
    ));
    let (client, connection) =
        timeout(DEADLINE, config.connect(NoTls)).await.context("no answer from the local server")??;
    Ok(session(client, connection, DEADLINE))
}

/// A session with an instance of the database, as the replication role. The host must prove itself with a certificate of the database's CA.
pub async fn connect(host: &str, database: &str) -> anyhow::Result<Session> {
    let read = |folder: &str, key: &str| {
        let path = Path::new(folder).join(key);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let password = read(wire::REPLICATION_FOLDER, "password")?;
    let mut config = tokio_postgres::Config::new();
    config
        .host(host)
        .port(names::PORT_POSTGRESQL)
        .user(names::REPLICATION_ROLE)
        .password(password.trim_end_matches('\n'))
        .dbname(database)
        .application_name("holdfast-worker")
        .options(WRITES)
        .ssl_mode(tokio_postgres::config::SslMode::Require)
        .connect_timeout(CONNECT);
    let (client, connection) = timeout(CONNECT, config.connect(Tls::with_the_databases_ca()?))
        .await
        .with_context(|| format!("{host} did not answer within {} s", CONNECT.as_secs()))?
        .with_context(|| format!("connecting to {host}"))?;
    Ok(session(client, connection, CONNECT))
}

fn session<S, T>(client: Client, connection: tokio_postgres::Connection<S, T>, limit: Duration) -> Session
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "session ended");
        }
    });
    Session { client, task, limit }
}

impl Session {
    async fn ask(&self, sql: &str) -> anyhow::Result<Vec<SimpleQueryMessage>> {
        let answer = timeout(self.limit, self.client.simple_query(sql))
            .await
            .context("the server did not answer in time")?;
        Ok(answer?)
    }

    /// All rows as text columns; NULL is `None`.
    pub async fn rows(&self, sql: &str) -> anyhow::Result<Vec<Vec<Option<String>>>> {
        let rows = self.ask(sql).await?.into_iter().filter_map(|m| match m {
            SimpleQueryMessage::Row(row) => {
                Some((0..row.len()).map(|i| row.get(i).map(String::from)).collect())
            }
            _ => None,
        });
        Ok(rows.collect())
    }

    /// One row as text columns; NULL is `None`.
    pub async fn row(&self, sql: &str) -> anyhow::Result<Vec<Option<String>>> {
        self.rows(sql).await?.into_iter().next().context("the answer has no row")
    }

    /// The first value of the first row; NULL is `None`.
    pub async fn value(&self, sql: &str) -> anyhow::Result<Option<String>> {
        Ok(self.row(sql).await?.into_iter().next().flatten())
    }

    /// All values of the first column.
    pub async fn column(&self, sql: &str) -> anyhow::Result<Vec<String>> {
        Ok(self
            .ask(sql)
            .await?
            .iter()
            .filter_map(|m| match m {
                SimpleQueryMessage::Row(row) => row.get(0).map(String::from),
                _ => None,
            })
            .collect())
    }

    /// Runs statements, bounded by `limit`.
    pub async fn execute(&self, sql: &str, limit: Duration) -> anyhow::Result<()> {
        timeout(limit, self.client.batch_execute(sql)).await.context("the server took too long")??;
        Ok(())
    }
}

/// TLS for tokio-postgres by rustls.
#[derive(Clone)]
struct Tls(Arc<rustls::ClientConfig>);

impl Tls {
    fn with_the_databases_ca() -> anyhow::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        let path = Path::new(wire::TLS_FOLDER).join("ca.crt");
        for certificate in
            CertificateDer::pem_file_iter(&path).with_context(|| format!("reading {}", path.display()))?
        {
            roots.add(certificate?)?;
        }
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(Self(Arc::new(config)))
    }
}

impl<S> MakeTlsConnect<S> for Tls
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type TlsConnect = Handshake;
    type Error = rustls_pki_types::InvalidDnsNameError;

    fn make_tls_connect(&mut self, host: &str) -> Result<Handshake, Self::Error> {
        Ok(Handshake { config: self.0.clone(), host: ServerName::try_from(host)?.to_owned() })
    }
}

/// A handshake to come.
struct Handshake {
    config: Arc<rustls::ClientConfig>,
    host: ServerName<'static>,
}

impl<S> TlsConnect<S> for Handshake
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Stream = Stream<S>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = std::io::Result<Stream<S>>> + Send>>;

    fn connect(self, stream: S) -> Self::Future {
        Box::pin(async move {
            let connector = tokio_rustls::TlsConnector::from(self.config);
            Ok(Stream(Box::new(connector.connect(self.host, stream).await?)))
        })
    }
}

/// An encrypted connection.
struct Stream<S>(Box<client::TlsStream<S>>);

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Stream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_read(context, buffer)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Stream<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut *self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut task::Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut *self.0).poll_shutdown(context)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> TlsStream for Stream<S> {
    fn channel_binding(&self) -> ChannelBinding {
        // SCRAM without binding: the certificate is verified against the database's own CA, which leaves nobody in between.
        ChannelBinding::none()
    }
}
