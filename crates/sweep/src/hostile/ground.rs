//! Where changes are tried: what is needed of a cluster, and the user's requests to it.

use super::{
    change::{Back, Change, Target},
    oracle::Answer,
};
use crate::{operators::Operator, world::World};
use kube::{
    Api, Client, Error,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, ValidationDirective},
    core::{ApiResource, DynamicObject, GroupVersionKind, Request},
};
use serde_json::Value;
use std::{future::Future, time::Duration};
use tokio::time::Instant;

/// Who makes the changes, as managedFields name it.
const USER: &str = "user";

/// A cluster with operators in it.
pub trait Ground {
    /// A client of the user's, in the namespace where all happens.
    fn user(&self) -> Client;
    /// Waits until no operator writes any more. Errors: that never comes.
    fn settle(&mut self) -> impl Future<Output = Result<(), String>>;
    /// The end state as text, in which what differs between runs that end alike is masked.
    fn dump(&self) -> String;
    /// The writes that forced resyncs cause.
    fn resync_writes(&mut self) -> impl Future<Output = Vec<String>>;
    /// What is wrong whatever the change: an operator that ended by itself, two primaries, lost data.
    fn problems(&self) -> Vec<String>;
    /// From now on this image cannot be pulled.
    fn without_image(&self, image: &str);
}

/// At rest: no operator changed anything for so long. Longer than every pause between two steps of one.
const QUIET: Duration = Duration::from_secs(330);
/// The same while a worker has not ended: one whose pod does not start is given up after ten minutes, and what follows from that is not
/// written at rest.
const QUIET_BESIDE_WORKERS: Duration = Duration::from_secs(660);
/// How often that is looked at.
const LOOK: Duration = Duration::from_secs(5);
/// Rest must come within this time.
const PATIENCE: Duration = Duration::from_secs(3 * 3600);

impl Ground for World {
    fn user(&self) -> Client {
        World::user(self)
    }

    /// Unlike [`World::settle`], attempts that the API server refuses keep nobody from resting: what it does not take is
    /// tried again for ever, and whether the object says so is for the oracle.
    async fn settle(&mut self) -> Result<(), String> {
        let end = Instant::now() + PATIENCE;
        let attempts = |world: &Self| Operator::ALL.into_iter().map(|o| world.attempts(o)).sum::<u64>();
        let (mut seen, mut since) = (attempts(self), Instant::now());
        let mut from = self.operator_writes().len();
        loop {
            self.pass(LOOK).await;
            let (now, made) = (Instant::now(), attempts(self));
            if made != seen {
                let writes = self.operator_writes();
                let effective = writes.iter().skip(from).any(|write| !is_refused(write) && !is_probe(write));
                (seen, from) = (made, writes.len());
                since = if effective { now } else { since };
            }
            if self.cluster.busy() {
                since = now;
            }
            let quiet = now.saturating_duration_since(since);
            if quiet >= QUIET_BESIDE_WORKERS || quiet >= QUIET && !works(&self.user()).await? {
                return Ok(());
            }
            if now >= end {
                let newest: Vec<String> = self.operator_writes().into_iter().rev().take(4).collect();
                return Err(format!("no rest within {} h; the newest writes: {}", 3, newest.join("; ")));
            }
        }
    }

    fn dump(&self) -> String {
        World::dump(self)
    }

    async fn resync_writes(&mut self) -> Vec<String> {
        let mut writes = World::resync_writes(self).await;
        writes.retain(|write| !is_probe(write) && !is_look(write));
        writes
    }

    fn problems(&self) -> Vec<String> {
        World::problems(self)
    }

    fn without_image(&self, image: &str) {
        self.cluster.fail_image(image);
    }
}

/// Whether a worker has not ended yet, but for probes, of which there is always a next one. Errors: the request failed.
async fn works(client: &Client) -> Result<bool, String> {
    let jobs = api(client, &Target::of("batch/v1", "Job", ""));
    let all = jobs.list(&ListParams::default()).await.map_err(|e| format!("the Jobs: {e}"))?;
    let ended = |job: &DynamicObject| {
        let conditions = job.data.pointer("/status/conditions").and_then(Value::as_array);
        conditions
            .into_iter()
            .flatten()
            .any(|c| c["status"] == "True" && (c["type"] == "Complete" || c["type"] == "Failed"))
    };
    let name = |job: &DynamicObject| job.metadata.name.clone().unwrap_or_default();
    Ok(all.items.iter().any(|job| !ended(job) && !name(job).starts_with("hfp-")))
}

/// Whether a write belongs to the probe of a store: one an hour, one in five minutes of a store that does not answer,
/// whether anybody looks or not.
fn is_probe(write: &str) -> bool {
    write.contains(" jobs.batch ") && write.contains("/hfp-")
        || write.contains(" backupstores.holdfast.dev ") && write.contains("/status ")
}

/// Whether a write is how an operator that may not read Secrets looks whether they are there.
fn is_look(write: &str) -> bool {
    write.contains(" Create secrets ") && write.contains("-> 409")
}

/// Whether a write, as [`holdfast_testkit::Write`] writes it, was refused by the API server.
pub fn is_refused(write: &str) -> bool {
    let code = write.rsplit("-> ").next().unwrap_or_default();
    code.starts_with('4') || code.starts_with('5')
}

fn api(client: &Client, target: &Target) -> Api<DynamicObject> {
    let (group, version) = target.api_version.split_once('/').unwrap_or(("", &target.api_version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &target.kind));
    Api::default_namespaced_with(client.clone(), &resource)
}

/// An object, if it is there. Errors: the request failed.
pub async fn get(client: &Client, target: &Target) -> Result<Option<Value>, String> {
    let found = api(client, target).get_opt(&target.name).await.map_err(|e| format!("{target:?}: {e}"))?;
    found.map(|object| serde_json::to_value(object).map_err(|e| e.to_string())).transpose()
}

/// Makes an object, as `kubectl create` does: fields that nobody knows are refused. Errors: the request failed for another
/// reason than a refusal.
pub async fn make(client: &Client, object: &Value) -> Result<Answer, String> {
    let text = |at: &str| object.pointer(at).and_then(Value::as_str).unwrap_or_default();
    let api = api(client, &Target::of(text("/apiVersion"), text("/kind"), text("/metadata/name")));
    let params = PostParams { field_manager: Some(USER.into()), ..PostParams::default() };
    let request = Request::new(api.resource_url()).create(&params, object.to_string().into_bytes());
    let mut request = request.map_err(|e| e.to_string())?;
    // The client offers this only for patches.
    let strict = format!("{}&fieldValidation=Strict", request.uri());
    *request.uri_mut() = strict.parse().map_err(|e| format!("{strict}: {e}"))?;
    answered(client.request(request).await)
}

/// Changes an object by a merge patch, as `kubectl patch` does. Errors: as of [`make`].
pub async fn patch(client: &Client, target: &Target, change: &Value) -> Result<Answer, String> {
    let params = PatchParams {
        field_manager: Some(USER.into()),
        field_validation: Some(ValidationDirective::Strict),
        ..PatchParams::default()
    };
    answered(api(client, target).patch(&target.name, &params, &Patch::Merge(change)).await)
}

/// Deletes an object; one that is gone is well. Errors: as of [`make`].
pub async fn delete(client: &Client, target: &Target) -> Result<Answer, String> {
    match api(client, target).delete(&target.name, &DeleteParams::background()).await {
        Ok(_) => Ok(Answer::Accepted),
        Err(error) => match answered(Err(error))? {
            Answer::Refused { code: 404, .. } => Ok(Answer::Accepted),
            other => Ok(other),
        },
    }
}

/// Makes a change.
pub async fn apply(client: &Client, change: &Change) -> Result<Answer, String> {
    if change.makes() {
        make(client, &change.change).await
    } else {
        patch(client, &change.target, &change.change).await
    }
}

/// Takes a change back, where that is the user's part.
pub async fn revert(client: &Client, change: &Change) -> Result<Answer, String> {
    match &change.back {
        Back::Patch(back) => patch(client, &change.target, back).await,
        Back::Delete => delete(client, &change.target).await,
        Back::Itself => Ok(Answer::Accepted),
    }
}

fn answered(result: Result<DynamicObject, Error>) -> Result<Answer, String> {
    match result {
        Ok(_) => Ok(Answer::Accepted),
        Err(Error::Api(status)) => Ok(Answer::Refused { code: status.code, message: status.message.clone() }),
        Err(error) => Err(format!("the request failed: {error}")),
    }
}
