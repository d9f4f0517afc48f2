//! `/healthz`, `/readyz` and `/metrics` on port 9187, plain HTTP.

use super::{metrics::Metrics, shared::Shared};
use bytes::Bytes;
use holdfast_core::names;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::{convert::Infallible, sync::Arc, time::Duration};
use tokio::net::TcpListener;

/// A main loop that gave no sign for so long is stuck: the container is started anew. Clones beat while they run.
const STUCK_SECONDS: u64 = 60;

fn answer(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

async fn handle(request: &Request<Incoming>, shared: &Shared, metrics: &Metrics) -> Response<Full<Bytes>> {
    let verdict = |good: bool, text: String| {
        answer(if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, text)
    };
    match request.uri().path() {
        "/healthz" => {
            verdict(shared.silence() < STUCK_SECONDS, format!("main loop: {} s ago\n", shared.silence()))
        }
        "/readyz" => {
            let report = shared.report();
            verdict(report.ready, format!("{} {} {}\n", report.role.as_str(), report.doing, report.error))
        }
        "/metrics" => match metrics.text(shared).await {
            Ok(text) => answer(StatusCode::OK, text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => answer(StatusCode::NOT_FOUND, "/healthz /readyz /metrics\n"),
    }
}

/// Serves until the process ends.
pub async fn serve(shared: Shared, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let listener = match TcpListener::bind(("::", names::PORT_METRICS)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", names::PORT_METRICS)).await?,
    };
    loop {
        let (stream, _) = listener.accept().await?;
        let (shared, metrics) = (shared.clone(), metrics.clone());
        tokio::spawn(async move {
            let service = service_fn(|request| async {
                let request = request;
                Ok::<_, Infallible>(handle(&request, &shared, &metrics).await)
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
