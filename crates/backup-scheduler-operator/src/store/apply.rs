//! Makes and removes the Jobs of a BackupStore's probes. Touches nothing else.

use crate::{
    context::Context,
    jobs::{self, PROBE},
    store::{
        observe::Observed,
        plan::{Plan, job_name},
    },
};
use holdfast_core::{
    pods::{Worker, worker_job},
    wire::WorkerJob,
};
use holdfast_runtime::apply;
use k8s_openapi::api::batch::v1::Job;
use kube::{Resource, ResourceExt, api::PropagationPolicy};

/// A probe has so many seconds, its pod's start included.
const DEADLINE: i64 = 900;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Job cannot be built.
    #[error("cannot build the probe's Job")]
    Build(#[from] serde_json::Error),
    /// The API refuses.
    #[error("cannot {what} Job {name}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// On which Job.
        name: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// The object came without a uid.
    #[error("the BackupStore has no uid")]
    NoUid,
}

impl Error {
    /// What a person has to know: the API server refuses this, and will again.
    pub fn refusal(&self) -> Option<String> {
        let Self::Api { what, name, source } = self else { return None };
        Some(format!(
            "the API server refuses to {what} Job {name}, which is to try the store: {}",
            apply::refusal(source)?
        ))
    }
}

/// Carries out the plan's writes, apart from status.
pub async fn apply(ctx: &Context, observed: &Observed, plan: Plan) -> Result<(), Error> {
    let Plan { create, delete, status: _, again: _ } = plan;
    let store = &observed.store;
    let api = ctx.api::<Job>(&store.namespace().unwrap_or_default());
    for job in delete {
        let name = job.name_any();
        apply::delete(&api, &name, &job.uid().unwrap_or_default(), PropagationPolicy::Background)
            .await
            .map_err(|source| Error::Api { what: "delete", name, source })?;
    }
    if let Some(number) = create {
        let job = build(ctx, observed, number)?;
        let name = job.name_any();
        // One that is there already was made by an earlier try: the names are deterministic.
        apply::create(&api, &job).await.map_err(|source| Error::Api { what: "create", name, source })?;
    }
    Ok(())
}

fn build(ctx: &Context, observed: &Observed, number: i64) -> Result<Job, Error> {
    let store = &observed.store;
    let uid = store.uid().ok_or(Error::NoUid)?;
    let work = WorkerJob::Probe { store: store.spec.clone(), uid: format!("{uid}-{number}") };
    let mut job = worker_job(&Worker {
        name: job_name(&uid, store.metadata.generation.unwrap_or_default(), number),
        namespace: &store.namespace().unwrap_or_default(),
        database: None,
        owner: store.controller_owner_ref(&()).ok_or(Error::NoUid)?,
        image: &ctx.agent_image,
        agent_image: &ctx.agent_image,
        image_pull_secrets: &[],
        job: &work,
        store: &store.spec,
        connects_to: None,
        claim: None,
        token: None,
        deadline_seconds: Some(DEADLINE),
        resources: None,
    })?;
    jobs::mark(&mut job, PROBE, &store.name_any(), &uid, number);
    Ok(job)
}
