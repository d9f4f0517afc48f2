//! `/healthz`, `/readyz` and `/metrics` on port 9187, plain HTTP.

use super::shared::Shared;
use bytes::Bytes;
use holdfast_core::{
    names,
    report::{Role, VolumeStage},
};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus::{Encoder, IntGauge, IntGaugeVec, Opts, Registry, TextEncoder};
use std::{convert::Infallible, time::Duration};
use tokio::net::TcpListener;

/// A main loop that gave no sign for so long is stuck: the container is started anew. Clones beat while they run.
const STUCK_SECONDS: u64 = 60;

struct Metrics {
    registry: Registry,
    ready: IntGauge,
    role: IntGaugeVec,
    timeline: IntGauge,
    lag_bytes: IntGauge,
    synchronous: IntGauge,
    archive_behind: IntGauge,
    archive_failing: IntGauge,
    capacity: IntGauge,
    available: IntGauge,
    wal: IntGauge,
    full: IntGauge,
}

impl Metrics {
    fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauge = |name: &str, help: &str| -> Result<IntGauge, prometheus::Error> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        let role = IntGaugeVec::new(
            Opts::new("holdfast_instance_role", "1 for the role that the instance has"),
            &["role"],
        )?;
        registry.register(Box::new(role.clone()))?;
        registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
        Ok(Self {
            ready: gauge("holdfast_instance_ready", "1 when the instance serves what its role promises")?,
            timeline: gauge("holdfast_instance_timeline", "PostgreSQL timeline")?,
            lag_bytes: gauge(
                "holdfast_instance_replay_lag_bytes",
                "WAL known to a replica and not replayed yet",
            )?,
            synchronous: gauge(
                "holdfast_instance_synchronous_standbys",
                "Standbys in the synchronous set, on the primary",
            )?,
            archive_behind: gauge(
                "holdfast_instance_archive_behind_segments",
                "WAL files that wait for the store",
            )?,
            archive_failing: gauge("holdfast_instance_archive_failing", "1 when the last upload failed")?,
            capacity: gauge(
                "holdfast_instance_volume_capacity_bytes",
                "Size of the volume with data and WAL",
            )?,
            available: gauge(
                "holdfast_instance_volume_available_bytes",
                "What the server may still write to it; room held back for a full volume is not counted",
            )?,
            wal: gauge("holdfast_instance_wal_bytes", "Size of pg_wal")?,
            full: gauge(
                "holdfast_instance_disk_full",
                "1 while the volume is full: a primary refuses writes",
            )?,
            role,
            registry,
        })
    }

    fn text(&self, shared: &Shared) -> Result<Vec<u8>, prometheus::Error> {
        let report = shared.report();
        self.ready.set(i64::from(report.ready));
        for role in [Role::Primary, Role::Replica, Role::Unknown] {
            self.role.with_label_values(&[role.as_str()]).set(i64::from(role == report.role));
        }
        self.timeline.set(i64::from(report.timeline));
        self.lag_bytes.set(report.lag_bytes);
        self.synchronous.set(i64::try_from(report.synchronous.len()).unwrap_or(0));
        let archive = report.archive.unwrap_or_default();
        self.archive_behind.set(archive.behind_segments);
        self.archive_failing.set(i64::from(!archive.error.is_empty()));
        let volume = report.volume.unwrap_or_default();
        self.capacity.set(volume.capacity_bytes);
        self.available.set(volume.available_bytes);
        self.wal.set(volume.wal_bytes);
        self.full.set(i64::from(volume.stage == VolumeStage::Full));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

fn answer(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    response
}

fn handle(request: &Request<Incoming>, shared: &Shared, metrics: &Metrics) -> Response<Full<Bytes>> {
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
        "/metrics" => match metrics.text(shared) {
            Ok(text) => answer(StatusCode::OK, text),
            Err(error) => answer(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        },
        _ => answer(StatusCode::NOT_FOUND, "/healthz /readyz /metrics\n"),
    }
}

/// Serves until the process ends.
pub async fn serve(shared: Shared) -> anyhow::Result<()> {
    let metrics = std::sync::Arc::new(Metrics::new()?);
    let listener = match TcpListener::bind(("::", names::PORT_METRICS)).await {
        Ok(listener) => listener,
        Err(_) => TcpListener::bind(("0.0.0.0", names::PORT_METRICS)).await?,
    };
    loop {
        let (stream, _) = listener.accept().await?;
        let (shared, metrics) = (shared.clone(), metrics.clone());
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let response = handle(&request, &shared, &metrics);
                async move { Ok::<_, Infallible>(response) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(5))
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}
