//! Carries out one step of a Backup: writes Leases, Jobs and the Backup's finalizer, nothing else.

use crate::{
    backup::{
        observe::Observed,
        plan::{Step, Wait},
        work,
    },
    context::Context,
    finalizers,
};
use holdfast_core::{Backup, names, operation};
use holdfast_runtime::apply;
use k8s_openapi::{
    api::{batch::v1::Job, coordination::v1::Lease},
    jiff::Timestamp,
};
use kube::{Resource, ResourceExt, api::PropagationPolicy};
use std::sync::Arc;

/// A write that failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The Job cannot be built.
    #[error("cannot build the worker's Job")]
    Build(#[from] work::Error),
    /// The API refuses.
    #[error("cannot {what}")]
    Api {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// The object came without a uid.
    #[error("the Backup has no uid")]
    NoUid,
}

impl Error {
    /// What a person has to know: the API server refuses this, and will again. The status says so until a later try goes through.
    pub fn refusal(&self) -> Option<Wait> {
        let Self::Api { what, source } = self else { return None };
        let words = apply::refusal(source)?;
        Some(Wait::person("Refused", format!("the API server refuses to {what}: {words}")))
    }
}

/// What follows a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// The next step, at once.
    Again,
    /// Nothing for a while.
    Rest,
}

fn fail(what: &'static str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { what, source }
}

/// Carries out one step.
pub async fn apply(ctx: &Context, o: &Observed, step: Step, now: Timestamp) -> Result<Then, Error> {
    let backup = &o.backup;
    let namespace = backup.namespace().unwrap_or_default();
    let (jobs, leases) = (ctx.api::<Job>(&namespace), ctx.api::<Lease>(&namespace));
    match step {
        // Status says it all; it is written already.
        Step::Rest | Step::Restamp | Step::Wait(_) | Step::Watch(_) => return Ok(Then::Rest),
        Step::Finish(_) => {}
        Step::SetFinalizer(wanted) => {
            let api = ctx.api::<Backup>(&namespace);
            finalizers::set(&api, backup.as_ref(), wanted).await.map_err(fail("set the finalizer"))?;
        }
        Step::TakeLease => {
            let holder = backup.owner_ref(&()).ok_or(Error::NoUid)?;
            let name = &backup.spec.database_ref.name;
            let lease = operation::lease(name, &namespace, holder, operation::Mode::Shared, now);
            // Somebody else may have been faster; the next look tells.
            apply::create(&leases, &lease).await.map_err(fail("take the operation Lease"))?;
        }
        Step::Start(number) => {
            let job = work::attempt(o, number, &ctx.agent_image)?;
            apply::create(&jobs, &job).await.map_err(fail("create the worker's Job"))?;
        }
        Step::ReleaseLease(uid) => {
            let name = names::lease_operation(&backup.spec.database_ref.name);
            apply::delete(&leases, &name, &uid, PropagationPolicy::Background)
                .await
                .map_err(fail("release the operation Lease"))?;
        }
        Step::Abandon(job, _, _) => remove(&jobs, &[job]).await?,
        Step::RemoveJobs(useless) => remove(&jobs, &useless).await?,
        Step::StartRemoval(number) => {
            let job = work::removal(o, number, &ctx.agent_image)?;
            apply::create(&jobs, &job).await.map_err(fail("create the Job that removes the data"))?;
            return Ok(Then::Rest);
        }
        Step::LetGo(said) => {
            // Another one's Jobs are not owned by this Backup, so nobody else would remove them soon.
            remove(&jobs, o.removal.as_ref().map(|r| r.jobs.as_slice()).unwrap_or_default()).await?;
            if let Some((reason, message)) = said {
                tracing::warn!(reason, message, "a Backup goes, its data stays");
                ctx.events.warning(backup.as_ref(), &reason, "Delete", &message).await;
            }
            let api = ctx.api::<Backup>(&namespace);
            finalizers::set(&api, backup.as_ref(), false).await.map_err(fail("remove the finalizer"))?;
            return Ok(Then::Rest);
        }
    }
    Ok(Then::Again)
}

async fn remove(api: &kube::Api<Job>, jobs: &[Arc<Job>]) -> Result<(), Error> {
    for job in jobs {
        let uid = job.uid().unwrap_or_default();
        apply::delete(api, &job.name_any(), &uid, PropagationPolicy::Background)
            .await
            .map_err(fail("delete a worker's Job"))?;
    }
    Ok(())
}
