//! Writes what the plan says, and nothing else: children, Secrets, volumes, pods, the finalizer. Every write is safe to
//! repeat, and none depends on one before it having been seen.

mod secrets;

use crate::{
    observe::is_of,
    plan::{
        Facts, Finalizer, Plan, Problem, SetStep,
        children::{Write, must_wait},
        clones::{self, GivenUp},
        growth::Refusal,
        secrets::SecretError,
        volumes::ClaimPatch,
    },
    validate::ValidatedDatabase,
};
use holdfast_core::{Database, names, names::managers};
use holdfast_runtime::apply::{self as api, bounded, misses, refuses};
use k8s_openapi::{
    api::{
        apps::v1::StatefulSet,
        coordination::v1::Lease,
        core::v1::{PersistentVolumeClaim, Pod},
        discovery::v1::EndpointSlice,
        policy::v1::PodDisruptionBudget,
    },
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions, PropagationPolicy},
    core::NamespaceResourceScope,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fmt::Debug};

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server refused it, or did not answer.
    #[error("cannot {action} {what}")]
    Api {
        /// What was tried.
        action: &'static str,
        /// On what.
        what: String,
        /// Why not.
        #[source]
        source: kube::Error,
    },
    /// Somebody else's object has the name of a child.
    #[error(
        "{kind} {name} exists and does not belong to this Database; remove or rename it, or give the Database another name"
    )]
    NameTaken {
        /// Kind.
        kind: String,
        /// Name.
        name: String,
    },
    /// A Secret could not be made.
    #[error(transparent)]
    Secret(#[from] SecretError),
}

impl ApplyError {
    fn api(action: &'static str, what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { action, what, source }
    }

    /// The namespace is being deleted, and the Database with it: nothing can be made there any more.
    pub fn namespace_ends(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. } if api::namespace_ends(status))
    }

    /// What a person has to put right; `None`: trying again may help.
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::NameTaken { .. } => Some(Problem::new("NameTaken", self.to_string())),
            Self::Secret(_) => None,
            Self::Api { source: kube::Error::Api(status), .. } if refuses(status) => {
                Some(Problem::new("Refused", format!("{self}: {}", status.message)))
            }
            Self::Api { .. } => None,
        }
    }
}

/// What was done, as far as it matters to the status.
#[derive(Debug, Default)]
pub struct Applied {
    /// The Secrets are there.
    pub secrets: bool,
    /// The StatefulSet was made.
    pub created: bool,
    /// Sizes that the API server refused, by uid of the claim; everything else was done.
    pub refusals: BTreeMap<String, Refusal>,
    /// What became of clones.
    pub clones: Vec<CloneNews>,
    /// The pod that was deleted to be replaced, and why.
    pub replaced: Option<(String, &'static str)>,
}

/// What became of a clone, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloneNews {
    /// Its claim was made.
    Begun(String),
    /// It is not made; the replica is filled by streaming.
    Failed(String),
}

/// Carries a plan out. Errors: the first write that failed; the rest is done by a later reconcile.
pub async fn apply(
    client: &Client,
    database: &Database,
    valid: Option<&ValidatedDatabase>,
    plan: Plan,
    now: Timestamp,
) -> Result<Applied, ApplyError> {
    let Plan {
        finalizer,
        secrets,
        remove_superuser,
        service_account,
        role,
        role_binding,
        config_map,
        services,
        endpoint_slice,
        budget,
        remove_budget,
        claims,
        clones,
        give_up,
        stateful_set,
        replace,
        remove_claims,
        remove_lease,
        needs_live_view: _,
        facts: Facts { .. },
    } = plan;
    let writer = Writer {
        client,
        database: database.name_any(),
        namespace: database.namespace().unwrap_or_default(),
        uid: database.uid().unwrap_or_default(),
    };
    let mut applied = Applied::default();
    if finalizer == Finalizer::Add {
        // Before there are volumes that it is to take away.
        writer.finalizers(&[names::FINALIZER]).await?;
    }
    // First, and for themselves: a full volume must not wait for a Service that is refused.
    let mut sizes = Ok(());
    for patch in claims {
        let uid = patch.uid.clone();
        match writer.claim(patch, now).await {
            Ok(refusal) => applied.refusals.extend(refusal.map(|refusal| (uid, refusal))),
            Err(error) => sizes = sizes.and(Err(error)),
        }
    }
    // One after the other: the API server hands out ClusterIPs one at a time, and goes on with requests that nobody waits for any
    // more, so a crowd of them would only time out.
    let all_services = async {
        let mut written = Vec::new();
        for service in services {
            written.push(writer.child(service).await);
        }
        written
    };
    let made = async {
        match (secrets, valid) {
            (Some(superuser), Some(db)) => writer.secrets(db, superuser, now).await.map(|()| true),
            _ => Ok(false),
        }
    };
    // The API server lets nobody bind a Role that it cannot look up, so the Role comes first.
    let rights = async {
        writer.child(role).await?;
        writer.child(role_binding).await
    };
    // All that pods need before they start. Each is tried, so that one that is refused does not keep the others away.
    let (made, rights, services, service_account, config_map, slice, budget) = tokio::join!(
        made,
        rights,
        all_services,
        writer.child(service_account),
        writer.child(config_map),
        writer.endpoint_slice(endpoint_slice),
        writer.child(budget),
    );
    let made = made?;
    rights?;
    services.into_iter().collect::<Result<Vec<()>, _>>()?;
    service_account?;
    config_map?;
    slice?;
    budget?;
    applied.secrets = made;
    if let Some(budget) = remove_budget {
        writer
            .delete::<PodDisruptionBudget>(&budget.name, &budget.uid, PropagationPolicy::Background)
            .await?;
    }
    sizes?;
    for clone in give_up {
        applied.clones.extend(writer.give_up(clone).await?);
    }
    for claim in clones {
        applied.clones.extend(writer.clone_claim(claim).await?);
    }
    if remove_superuser {
        writer.remove_superuser().await?;
    }
    applied.created = writer.stateful_set(stateful_set).await?;
    if let Some(pod) = replace
        && writer.delete::<Pod>(&pod.name, &pod.uid, PropagationPolicy::Background).await?
    {
        applied.replaced = Some((pod.name, pod.why));
    }
    for claim in remove_claims {
        writer
            .delete::<PersistentVolumeClaim>(&claim.name, &claim.uid, PropagationPolicy::Background)
            .await?;
    }
    if let Some(lease) = remove_lease {
        writer.delete::<Lease>(&lease.name, &lease.uid, PropagationPolicy::Background).await?;
    }
    if finalizer == Finalizer::Remove {
        writer.finalizers(&[]).await?;
    }
    Ok(applied)
}

/// Writes on behalf of one Database.
struct Writer<'a> {
    client: &'a Client,
    database: String,
    namespace: String,
    uid: String,
}

impl Writer<'_> {
    fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The finalizers that are ours, and only these. The uid keeps it from touching a successor of the same name.
    async fn finalizers(&self, ours: &[&str]) -> Result<(), ApplyError> {
        let body = json!({"metadata": {"uid": self.uid, "finalizers": ours}});
        let written =
            api::apply_json::<Database>(&self.api(), managers::DATABASE, &self.database, &body).await;
        let done = match written {
            Ok(left) if ours.is_empty() => self.foreign_finalizer(&left).await,
            other => other.map(drop),
        };
        match done {
            Err(kube::Error::Api(status)) if ours.is_empty() && status.is_not_found() => Ok(()),
            other => other
                .map_err(ApplyError::api("write the finalizer of", format!("Database {}", self.database))),
        }
    }

    /// Takes away our finalizer where somebody else put it: an apply removes only what this operator had applied, and would
    /// be repeated for ever.
    async fn foreign_finalizer(&self, database: &Database) -> Result<(), kube::Error> {
        if !database.finalizers().iter().any(|f| f == names::FINALIZER) {
            return Ok(());
        }
        let rest: Vec<&String> = database.finalizers().iter().filter(|f| *f != names::FINALIZER).collect();
        // The list is written whole: not over what another controller adds to it meanwhile.
        let body = json!({"metadata": {
            "uid": self.uid, "resourceVersion": database.resource_version(), "finalizers": rest}});
        let params = PatchParams { field_manager: Some(managers::DATABASE.into()), ..PatchParams::default() };
        let databases: Api<Database> = self.api();
        bounded(databases.patch(&self.database, &params, &Patch::Merge(&body))).await.map(drop)
    }

    /// Creates or changes a child. One that the watch did not show may be there all the same: server-side apply with force would
    /// take somebody else's over.
    async fn child<K>(&self, write: Write<K>) -> Result<(), ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Serialize
            + DeserializeOwned
            + Clone
            + Debug,
    {
        let (mut object, is_new) = match write {
            Write::Nothing | Write::Wait => return Ok(()),
            Write::Create(object) => (object, true),
            Write::Update(object) => (object, false),
        };
        let name = object.name_any();
        let kind = K::kind(&()).to_string();
        let what = format!("{kind} {name}");
        let children: Api<K> = self.api();
        if is_new {
            let there =
                bounded(children.get_opt(&name)).await.map_err(ApplyError::api("read", what.clone()))?;
            if let Some(there) = there {
                if !is_of(&there, &self.database, &self.uid) {
                    return Err(ApplyError::NameTaken { kind, name });
                }
                if must_wait(&there, &self.uid) {
                    // The watch shows it in a moment, and its end after that.
                    return Ok(());
                }
                object.meta_mut().uid = there.uid();
            }
        }
        api::apply(&children, managers::DATABASE, &object)
            .await
            .map(drop)
            .map_err(ApplyError::api("write", what))
    }

    /// Created empty, and never touched again: it is the primary's.
    async fn endpoint_slice(&self, slice: Option<EndpointSlice>) -> Result<(), ApplyError> {
        let Some(slice) = slice else { return Ok(()) };
        let what = format!("EndpointSlice {}", slice.name_any());
        api::create(&self.api(), &slice).await.map(drop).map_err(ApplyError::api("create", what))
    }

    async fn delete<K>(
        &self,
        name: &str,
        uid: &str,
        propagation: PropagationPolicy,
    ) -> Result<bool, ApplyError>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        let what = format!("{} {name}", K::kind(&()));
        api::delete::<K>(&self.api(), name, uid, propagation).await.map_err(ApplyError::api("delete", what))
    }

    /// A patch of exactly these fields on exactly this object. `false`: it is another one by now, or gone.
    ///
    /// Not server-side apply: the fields of a volume have several writers, and an apply that names fewer fields than the
    /// one before would take the others away.
    async fn patch<K>(&self, name: &str, uid: &str, mut body: Value) -> Result<bool, kube::Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()> + DeserializeOwned + Clone + Debug,
    {
        if let Some(body) = body.as_object_mut() {
            let meta = body.entry("metadata").or_insert_with(|| json!({}));
            if let Some(meta) = meta.as_object_mut() {
                meta.insert("uid".into(), uid.into());
            }
        }
        let params = PatchParams { field_manager: Some(managers::DATABASE.into()), ..PatchParams::default() };
        let objects: Api<K> = self.api();
        match bounded(objects.patch(name, &params, &Patch::Merge(&body))).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if misses(&status) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Returns why the volume may not have the size, if so.
    async fn claim(&self, patch: ClaimPatch, now: Timestamp) -> Result<Option<Refusal>, ApplyError> {
        let ClaimPatch { name, uid, system_identifier, size } = patch;
        let what = format!("PersistentVolumeClaim {name}");
        if let Some(id) = system_identifier {
            let body = json!({"metadata": {"labels": {names::LABEL_SYSTEM_IDENTIFIER: id}}});
            self.patch::<PersistentVolumeClaim>(&name, &uid, body)
                .await
                .map_err(ApplyError::api("label", what.clone()))?;
        }
        let Some(size) = size else { return Ok(None) };
        let body = json!({"spec": {"resources": {"requests": {"storage": size}}}});
        match self.patch::<PersistentVolumeClaim>(&name, &uid, body).await {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if refuses(&status) => {
                Ok(Some(Refusal { size, at: now, words: status.message.clone() }))
            }
            Err(source) => Err(ApplyError::api("change the size of", what)(source)),
        }
    }

    /// Makes the claim of a clone. One that is there already is as good: its name says whose it is. A refusal costs only speed:
    /// the StatefulSet's controller makes the claim without a source, or says why it cannot either.
    async fn clone_claim(&self, claim: PersistentVolumeClaim) -> Result<Option<CloneNews>, ApplyError> {
        let name = claim.name_any();
        let source = clones::source(&claim).unwrap_or_default();
        match api::create(&self.api(), &claim).await {
            Ok(Some(_)) => {
                Ok(Some(CloneNews::Begun(format!("volume claim {name} is made as a clone of {source}"))))
            }
            Ok(None) => Ok(None),
            Err(kube::Error::Api(status)) if refuses(&status) => Ok(Some(CloneNews::Failed(format!(
                "volume claim {name} cannot be made as a clone of {source}, it is filled by streaming: {}",
                status.message
            )))),
            Err(source) => Err(ApplyError::api("create", format!("PersistentVolumeClaim {name}"))(source)),
        }
    }

    /// Deletes the claim of a clone that does not come, then the pod that waits for it: the StatefulSet's controller makes both
    /// anew. A claim that ever had a volume stays: it is read first, and deleted only as it was read.
    async fn give_up(&self, clone: GivenUp) -> Result<Option<CloneNews>, ApplyError> {
        let GivenUp { claim, pod, why } = clone;
        let what = format!("PersistentVolumeClaim {}", claim.name);
        let claims: Api<PersistentVolumeClaim> = self.api();
        let there =
            bounded(claims.get_opt(&claim.name)).await.map_err(ApplyError::api("read", what.clone()))?;
        let ours = |c: &PersistentVolumeClaim| {
            c.uid().as_ref() == Some(&claim.uid) && clones::source(c).is_some() && clones::never_bound(c)
        };
        let Some(there) = there.filter(ours) else { return Ok(None) };
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(claim.uid.clone()),
                resource_version: there.resource_version(),
            }),
            ..DeleteParams::default()
        };
        match bounded(claims.delete(&claim.name, &params)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                return Ok(None);
            }
            Err(source) => return Err(ApplyError::api("delete", what)(source)),
        }
        self.delete::<Pod>(&pod.name, &pod.uid, PropagationPolicy::Background).await?;
        Ok(Some(CloneNews::Failed(why)))
    }

    /// Whether it was made.
    async fn stateful_set(&self, step: SetStep) -> Result<bool, ApplyError> {
        let what = format!("StatefulSet {}", self.database);
        match step {
            SetStep::Leave | SetStep::Wait => Ok(false),
            SetStep::Create(set) => self.child(Write::Create(*set)).await.map(|()| true),
            SetStep::Update(set) => self.child(Write::Update(*set)).await.map(|()| false),
            SetStep::Stop { uid } => {
                let body = json!({"spec": {"replicas": 0}});
                let stopped = self.patch::<StatefulSet>(&self.database, &uid, body).await;
                stopped.map(|_| false).map_err(ApplyError::api("stop", what))
            }
            SetStep::Delete { uid, orphan } => {
                let propagation =
                    if orphan { PropagationPolicy::Orphan } else { PropagationPolicy::Background };
                self.delete::<StatefulSet>(&self.database, &uid, propagation).await.map(|_| false)
            }
        }
    }
}

#[cfg(test)]
#[path = "apply_tests.rs"]
mod tests;
