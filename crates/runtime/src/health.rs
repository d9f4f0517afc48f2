//! `/metrics`, `/healthz` and `/readyz` over plain HTTP. Touches one listening socket; the readiness answer is a pure function.

use crate::metrics::Metrics;
use anyhow::Context;
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};

/// Port of the operators' HTTP server.
pub const PORT: u16 = 8080;
/// Connections served at once: probes and a few scrapers, never a flood that costs memory.
const CONNECTIONS: usize = 64;
/// How long a connection may live.
const CONNECTION: Duration = Duration::from_secs(30);
/// How long a client may take to send its request.
const REQUEST: Duration = Duration::from_secs(5);

/// What the process is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// It has not asked for the leader Lease yet.
    #[default]
    Starting,
    /// Another replica holds the leader Lease.
    Standby {
        /// Its name; empty when it is not known yet.
        holder: String,
    },
    /// It holds the leader Lease and works.
    Leading,
    /// It was told to end.
    Stopping,
}

/// What readiness is decided from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Readiness {
    /// CRDs that the API server does not serve; `None` while it was not asked yet.
    pub crds_missing: Option<Vec<String>>,
    /// What the process is doing.
    pub role: Role,
}

impl Readiness {
    /// Whether the process is ready, and the text that says why or why not.
    ///
    /// A standby is ready: it is as good as it gets, and a rollout that waited for it would never end.
    pub fn answer(&self) -> (bool, String) {
        match (&self.crds_missing, &self.role) {
            (_, Role::Stopping) => (false, "stopping\n".into()),
            (None, _) => (false, "waiting for an answer of the Kubernetes API\n".into()),
            (Some(missing), _) if !missing.is_empty() => (
                false,
                format!(
                    "waiting for CRDs: {}: apply the operator's deploy folder, or deploy/crds\n",
                    missing.join(", ")
                ),
            ),
            (Some(_), Role::Leading) => (true, "ready: leading\n".into()),
            (Some(_), Role::Standby { holder }) if !holder.is_empty() => {
                (true, format!("ready: standby, {holder} leads\n"))
            }
            (Some(_), Role::Standby { .. } | Role::Starting) => (true, "ready: standby\n".into()),
        }
    }
}

/// The process's health, shared by those who know it and the server that tells it.
pub struct Health {
    state: watch::Sender<Readiness>,
}

impl Default for Health {
    fn default() -> Self {
        Self { state: watch::Sender::new(Readiness::default()) }
    }
}

impl Health {
    /// Records which CRDs are missing.
    pub fn crds_missing(&self, missing: Vec<String>) {
        self.state.send_if_modified(|state| {
            let changed = state.crds_missing.as_ref() != Some(&missing);
            state.crds_missing = Some(missing);
            changed
        });
    }

    /// Records what the process is doing.
    pub fn role(&self, role: Role) {
        self.state.send_modify(|state| state.role = role);
    }

    /// What readiness is decided from, now.
    pub fn readiness(&self) -> Readiness {
        self.state.borrow().clone()
    }

    /// Waits until no CRD is missing.
    pub async fn crds_present(&self) {
        let mut state = self.state.subscribe();
        // The sender is ours, so the channel cannot close while this waits.
        let _ = state.wait_for(|s| s.crds_missing.as_ref().is_some_and(Vec::is_empty)).await;
    }
}

/// Opens the port: all addresses, IPv6 and IPv4, or IPv4 alone where there is no IPv6. `HOLDFAST_HTTP_ADDRESS` overrides it.
///
/// Errors: the address is no address, or the port is taken.
pub async fn listen() -> anyhow::Result<TcpListener> {
    if let Ok(address) = std::env::var("HOLDFAST_HTTP_ADDRESS") {
        let address: SocketAddr = address
            .parse()
            .with_context(|| format!("HOLDFAST_HTTP_ADDRESS={address} is not an address with a port"))?;
        return TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"));
    }
    if let Ok(listener) = TcpListener::bind(SocketAddr::from(([0_u16; 8], PORT))).await {
        return Ok(listener);
    }
    TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], PORT)))
        .await
        .with_context(|| format!("cannot listen on port {PORT}"))
}

/// Serves for ever. Never returns: a connection's failure is its own.
pub async fn serve(listener: TcpListener, health: Arc<Health>, metrics: Arc<Metrics>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Closing the semaphore is nobody's to do; without a slot the connection waits in the backlog.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of file descriptors, most likely: accepting again at once would spin.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(200)).await;
                continue;
            }
        };
        let (health, metrics) = (Arc::clone(&health), Arc::clone(&metrics));
        tokio::spawn(async move {
            let _slot = slot;
            let service = service_fn(move |request: Request<Incoming>| {
                let response = respond(request.method(), request.uri().path(), &health, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(REQUEST)
                .serve_connection(TokioIo::new(stream), service);
            let _ = tokio::time::timeout(CONNECTION, connection).await;
        });
    }
}

/// The answer to a request.
fn respond(method: &Method, path: &str, health: &Health, metrics: &Metrics) -> Response<Full<Bytes>> {
    if method != Method::GET && method != Method::HEAD {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match path {
        // Liveness asks only whether the runtime still turns: restarting helps against nothing else.
        "/healthz" => text(StatusCode::OK, "ok\n"),
        "/readyz" => {
            let (ready, why) = health.readiness().answer();
            text(if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, why)
        }
        "/metrics" => match metrics.text() {
            Ok(body) => {
                let mut response = Response::new(Full::new(Bytes::from(body)));
                response.headers_mut().insert(
                    header::CONTENT_TYPE,
                    header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
                );
                response
            }
            Err(error) => {
                text(StatusCode::INTERNAL_SERVER_ERROR, format!("cannot encode the metrics: {error}\n"))
            }
        },
        _ => text(StatusCode::NOT_FOUND, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn text(status: StatusCode, body: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body.into())));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readiness(missing: Option<&[&str]>, role: Role) -> (bool, String) {
        let crds_missing = missing.map(|m| m.iter().map(|c| (*c).to_string()).collect());
        Readiness { crds_missing, role }.answer()
    }

    #[test]
    fn readiness_says_what_is_missing() {
        assert!(!readiness(None, Role::Starting).0);
        let (ready, why) =
            readiness(Some(&["databases.holdfast.dev"]), Role::Standby { holder: String::new() });
        assert!(!ready && why.contains("databases.holdfast.dev") && why.contains("deploy/crds"));
    }

    #[test]
    fn a_standby_is_ready_and_names_the_leader() {
        assert_eq!(
            readiness(Some(&[]), Role::Standby { holder: "database-operator-7c9".into() }),
            (true, "ready: standby, database-operator-7c9 leads\n".into())
        );
        assert!(readiness(Some(&[]), Role::Leading).0);
        assert!(!readiness(Some(&[]), Role::Stopping).0);
    }

    #[tokio::test]
    async fn the_server_answers() {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (health, metrics) = (Arc::new(Health::default()), Arc::new(Metrics::new("test").unwrap()));
        let server = tokio::spawn(serve(listener, Arc::clone(&health), metrics));
        let get = async |path: &str| {
            let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/readyz").await.starts_with("HTTP/1.1 503"));
        health.crds_missing(Vec::new());
        health.crds_present().await;
        assert!(get("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get("/metrics").await.contains("holdfast_build_info"));
        assert!(get("/").await.starts_with("HTTP/1.1 404"));
        server.abort();
    }
}
