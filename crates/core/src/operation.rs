//! The operation Lease `<database>-operation`: permission for exclusive work on a database.
//!
//! Its one owner reference is its holder, a Backup or a Restore, so that a deleted holder lets go. Taking is
//! creating, releasing is deleting with the uid as precondition; it is never handed over and never runs out.
//! Its uid is the token that pods working under it carry as label.

use crate::names;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference},
    jiff::Timestamp,
};

/// Annotation: what the holder asks of the database, see [`Mode`].
pub const ANNOTATION_MODE: &str = "holdfast.dev/operation-mode";

/// What the holder of the operation Lease asks of the database operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing: the database goes on; others wait.
    Shared,
    /// Archive the tail, stop all pods, answer with condition Quiesced and the token.
    Exclusive,
}

impl Mode {
    /// As the annotation spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Shared => "Shared",
            Self::Exclusive => "Exclusive",
        }
    }

    /// Reads the annotation; anything unknown is the careful reading, `Exclusive`.
    pub fn of(lease: &Lease) -> Self {
        let text = lease.metadata.annotations.as_ref().and_then(|a| a.get(ANNOTATION_MODE));
        if text.map(String::as_str) == Some("Shared") { Self::Shared } else { Self::Exclusive }
    }
}

/// The Lease to create for this holder.
pub fn lease(database: &str, namespace: &str, holder: OwnerReference, mode: Mode, now: Timestamp) -> Lease {
    Lease {
        metadata: ObjectMeta {
            name: Some(names::lease_operation(database)),
            namespace: Some(namespace.into()),
            labels: Some(names::labels(database)),
            annotations: Some([(ANNOTATION_MODE.to_string(), mode.as_str().to_string())].into()),
            owner_references: Some(vec![OwnerReference {
                controller: Some(false),
                block_owner_deletion: None,
                ..holder.clone()
            }]),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(format!("{}/{}", holder.kind, holder.name)),
            acquire_time: Some(MicroTime(now)),
            ..LeaseSpec::default()
        }),
    }
}

/// The token: the Lease's uid.
pub fn token(lease: &Lease) -> Option<&str> {
    lease.metadata.uid.as_deref()
}

/// Whether the object with this uid holds the Lease.
pub fn held_by(lease: &Lease, uid: &str) -> bool {
    lease.metadata.owner_references.as_deref().is_some_and(|o| o.len() == 1 && o[0].uid == uid)
}

/// The message of condition Quiesced, which carries the token.
pub fn quiesced_message(token: &str) -> String {
    format!("stopped for the operation with token {token}")
}

/// Whether a Quiesced condition's message carries this token.
pub fn message_has_token(message: &str, token: &str) -> bool {
    message.split_whitespace().any(|word| word == token)
}
