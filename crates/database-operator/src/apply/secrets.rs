//! Writes Secrets, which this operator may create and delete but never read.

use super::{ApplyError, Writer};
use crate::{
    plan::secrets::{self, SecretError},
    validate::ValidatedDatabase,
};
use holdfast_core::names;
use holdfast_runtime::apply::{self as api, bounded, misses};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams, Preconditions},
};

/// So often another one may be in the way.
const TRIES: usize = 3;

impl Writer<'_> {
    /// Makes the Secrets that are not there. They cannot be read, so each is simply created, and "already exists" is as good.
    pub(super) async fn secrets(
        &self,
        db: &ValidatedDatabase,
        superuser: bool,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        let all: Api<Secret> = self.api();
        let mut wanted =
            vec![secrets::app(db, &secrets::password()?), secrets::replication(db, &secrets::password()?)];
        if superuser {
            wanted.push(secrets::superuser(db, &secrets::password()?));
        }
        for secret in &wanted {
            let what = format!("Secret {}", secret.name_any());
            api::create(&all, secret).await.map_err(ApplyError::api("create", what))?;
        }
        self.certificates(&all, db, now).await
    }

    /// Deletes the superuser's Secret, whoever made it: its name says what it is, and its password is valid no longer.
    pub(super) async fn remove_superuser(&self) -> Result<(), ApplyError> {
        self.discard(&self.api(), &names::secret_superuser(&self.database)).await
    }

    /// The certificate belongs to the CA. When it is there, both are left alone. When it is not, a CA that may be left from
    /// an attempt that was cut off is of no use, since its key cannot be read: both are made anew, the CA first. What that
    /// attempt sent can still arrive in between: then neither is kept.
    async fn certificates(
        &self,
        all: &Api<Secret>,
        db: &ValidatedDatabase,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        for _ in 0..TRIES {
            let pair = secrets::certificates(db, now)?;
            let (ca, tls) = (pair.ca.name_any(), pair.tls.name_any());
            let trial = PostParams { dry_run: true, ..PostParams::default() };
            match bounded(all.create(&trial, &pair.tls)).await {
                Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
                other => drop(other.map_err(ApplyError::api("create", format!("Secret {tls}")))?),
            }
            self.discard(all, &ca).await?;
            let made = api::create(all, &pair.ca).await;
            if made.map_err(ApplyError::api("create", format!("Secret {ca}")))?.is_none() {
                continue;
            }
            let made = api::create(all, &pair.tls).await;
            if made.map_err(ApplyError::api("create", format!("Secret {tls}")))?.is_some() {
                return Ok(());
            }
            self.discard(all, &tls).await?;
        }
        Err(SecretError::Contested.into())
    }

    /// Deletes the very Secret that bears this name now: a request that arrives late must not take the next one's. It cannot be read, so
    /// the answer to a deletion on trial tells its uid.
    async fn discard(&self, all: &Api<Secret>, name: &str) -> Result<(), ApplyError> {
        let what = format!("Secret {name}");
        let trial = DeleteParams { dry_run: true, ..DeleteParams::default() };
        let uid = match bounded(all.delete(name, &trial)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => return Ok(()),
            other => other
                .map_err(ApplyError::api("delete", what.clone()))?
                .either(|secret| secret.uid(), |status| status.details.map(|details| details.uid)),
        };
        let Some(uid) = uid.filter(|uid| !uid.is_empty()) else { return Err(SecretError::Contested.into()) };
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: Some(uid), resource_version: None }),
            ..DeleteParams::default()
        };
        match bounded(all.delete(name, &params)).await {
            Err(kube::Error::Api(status)) if misses(&status) => Ok(()),
            other => other.map(drop).map_err(ApplyError::api("delete", what)),
        }
    }
}
