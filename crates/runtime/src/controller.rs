//! One controller's loop. Touches nothing itself: the reconcile function it is given does.

use crate::{
    backoff::Backoff,
    metrics::Outcome,
    operator::{Process, expired},
    telemetry,
};
use futures::StreamExt;
use kube::{
    Resource, ResourceExt,
    runtime::{
        Config, Controller,
        controller::{Action, Error},
        reflector::ObjectRef,
    },
};
use serde::de::DeserializeOwned;
use std::{fmt::Debug, future::Future, sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::Instrument;

/// How long one reconcile may take.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// Reconciles at once, of different objects: an API server that hangs must not gather thousands of them.
const CONCURRENCY: u16 = 32;

/// Why a reconcile failed.
#[derive(Debug, thiserror::Error)]
enum Failure<E: std::error::Error + 'static> {
    #[error(transparent)]
    Reconcile(E),
    #[error("the reconcile took longer than {} s", DEADLINE.as_secs())]
    TooLong,
}

/// See [`crate::operator::drive`].
pub(crate) async fn drive<K, C, E, F, Fut>(
    controller: Controller<K>,
    name: &'static str,
    process: &Process,
    context: Arc<C>,
    reconcile: F,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    C: Send + Sync + 'static,
    E: std::error::Error + Send + Sync + 'static,
    F: Fn(Arc<K>, Arc<C>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, E>> + Send + 'static,
{
    let metrics = Arc::clone(&process.metrics);
    metrics.introduce(name);
    let backoff = Arc::new(Backoff::<ObjectRef<K>>::default());

    let (done, counts) = (Arc::clone(&backoff), Arc::clone(&metrics));
    let step = move |object: Arc<K>, context: Arc<C>| {
        let key = ObjectRef::from_obj(object.as_ref());
        let span = tracing::info_span!(
            "reconcile",
            controller = name,
            namespace = object.namespace().unwrap_or_default(),
            object = object.name_any()
        );
        let work = reconcile(object, context);
        let (backoff, metrics) = (Arc::clone(&done), Arc::clone(&counts));
        async move {
            let started = Instant::now();
            let result = match tokio::time::timeout(DEADLINE, work).await {
                Ok(Ok(action)) => Ok(action),
                Ok(Err(error)) => Err(Failure::Reconcile(error)),
                Err(_) => Err(Failure::TooLong),
            };
            let outcome = match &result {
                Ok(action) if *action == Action::await_change() => Outcome::Success,
                Ok(_) => Outcome::RequeueAfter,
                Err(_) => Outcome::Error,
            };
            if result.is_ok() {
                backoff.forget(&key);
            }
            metrics.reconciled(name, outcome, started.elapsed());
            metrics.failing(name, backoff.failing());
            result
        }
        .instrument(span)
    };

    let (failures, counts) = (Arc::clone(&backoff), Arc::clone(&metrics));
    let policy = move |object: Arc<K>, error: &Failure<E>, _: Arc<C>| {
        let pause = failures.failed(ObjectRef::from_obj(object.as_ref()));
        counts.failing(name, failures.failing());
        tracing::warn!(
            controller = name,
            namespace = object.namespace().unwrap_or_default(),
            name = object.name_any(),
            error = telemetry::chain(error),
            retry_in_seconds = pause.as_secs_f64(),
            "reconcile failed"
        );
        Action::requeue(pause)
    };

    controller
        .with_config(Config::default().concurrency(CONCURRENCY))
        .graceful_shutdown_on(process.stopping())
        .run(step, policy, context)
        .for_each(|result| {
            match result {
                Ok(_) | Err(Error::ReconcilerFailed(..)) => {}
                // Normal after a deletion: something that it owned changed last.
                Err(Error::ObjectNotFound(object)) => {
                    let key = ObjectRef::<K>::new(&object.name);
                    let key = match &object.namespace {
                        Some(namespace) => key.within(namespace),
                        None => key,
                    };
                    backoff.forget(&key);
                    metrics.failing(name, backoff.failing());
                }
                // The API server forgot where the watch was, as it does with each of them now and then: it lists anew.
                Err(Error::QueueError(error)) if expired(&error) => {
                    tracing::debug!(controller = name, "a watch was too old and is begun again");
                }
                Err(Error::QueueError(error)) => {
                    process.watch_failed(name);
                    tracing::warn!(
                        controller = name,
                        error = telemetry::chain(&error),
                        "a watch failed and is begun again; if it says Forbidden, apply the operator's deploy folder"
                    );
                }
                Err(Error::RunnerError(error)) => {
                    tracing::error!(controller = name, error = telemetry::chain(&error), "the controller's runner failed");
                }
            }
            std::future::ready(())
        })
        .await;
    process.ended(&format!("controller {name}"));
}
