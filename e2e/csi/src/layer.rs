//! What every call passes through: the faults put on its name, and the log.

use crate::faults::Rules;
use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};
use tonic::{Status, body::Body, codegen::http};
use tower::{Layer, Service};

/// Puts faults and the log around a server's services.
#[derive(Clone)]
pub struct Watch {
    /// What is to happen to calls.
    pub rules: Rules,
    /// Which socket, for the log.
    pub place: Arc<str>,
}

impl<S> Layer<S> for Watch {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Watched<S> {
        Watched { inner, watch: self.clone() }
    }
}

/// Services with faults and the log around them.
#[derive(Clone)]
pub struct Watched<S> {
    inner: S,
    watch: Watch,
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Watched<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer<S::Error> {
        // The service that was found ready is the one to call; its copy waits for the next call.
        let copy = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, copy);
        let watch = self.watch.clone();
        Box::pin(async move {
            let call = request.uri().path().rsplit('/').next().unwrap_or_default().to_string();
            let verdict = watch.rules.judge(&call);
            // Who gives up while waiting here has had nothing done.
            tokio::time::sleep(verdict.delay).await;
            if let Some(message) = verdict.failure {
                tracing::info!(call, place = %watch.place, message, "fails on demand");
                return Ok(Status::unavailable(message).into_http());
            }
            let begun = Instant::now();
            // As a task: a caller that gives up must not end a change of mounts halfway.
            let answer = match tokio::spawn(inner.call(request)).await {
                Ok(answer) => answer?,
                Err(error) => Status::internal(format!("{call} broke: {error}")).into_http(),
            };
            let milliseconds = begun.elapsed().as_millis();
            // An answer that is an error has its code in the headers.
            match Status::from_header_map(answer.headers()).filter(|status| status.code() != tonic::Code::Ok)
            {
                Some(status) => {
                    let (code, message) = (status.code(), status.message());
                    tracing::warn!(call, place = %watch.place, milliseconds, ?code, message, "refused");
                }
                None => tracing::debug!(call, place = %watch.place, milliseconds, "answered"),
            }
            Ok(answer)
        })
    }
}
