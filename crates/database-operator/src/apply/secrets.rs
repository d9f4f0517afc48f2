//! Writes Secrets, which this operator may create and delete but never read.

use super::{ApplyError, Writer};
use crate::{plan::secrets, validate::ValidatedDatabase};
use holdfast_core::names;
use holdfast_runtime::apply::{self as api, bounded};
use k8s_openapi::{api::core::v1::Secret, jiff::Timestamp};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, PostParams},
};

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
        self.delete_secret(&names::secret_superuser(&self.database)).await
    }

    /// Deletes a Secret by its name: its uid cannot be known.
    async fn delete_secret(&self, name: &str) -> Result<(), ApplyError> {
        match bounded(self.api::<Secret>().delete(name, &DeleteParams::default())).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            other => other.map(drop).map_err(ApplyError::api("delete", format!("Secret {name}"))),
        }
    }

    /// The certificate belongs to the CA. When it is there, both are left alone. When it is not, a CA that may be left from
    /// an attempt that was cut off is of no use, since its key cannot be read: both are made anew, the CA first.
    async fn certificates(
        &self,
        all: &Api<Secret>,
        db: &ValidatedDatabase,
        now: Timestamp,
    ) -> Result<(), ApplyError> {
        let pair = secrets::certificates(db, now)?;
        let tls = format!("Secret {}", pair.tls.name_any());
        let trial = PostParams { dry_run: true, ..PostParams::default() };
        match bounded(all.create(&trial, &pair.tls)).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => return Ok(()),
            other => drop(other.map_err(ApplyError::api("create", tls.clone()))?),
        }
        let name = pair.ca.name_any();
        self.delete_secret(&name).await?;
        let ca = format!("Secret {name}");
        api::create(all, &pair.ca).await.map_err(ApplyError::api("create", ca))?;
        api::create(all, &pair.tls).await.map_err(ApplyError::api("create", tls))?;
        Ok(())
    }
}
