//! Volumes that were made for a claim that went before Kubernetes knew of the volume: nobody else would ever delete them.
//!
//! What is being made is noted in a file first, and only what is noted there is deleted. "Neither a PersistentVolume nor a
//! claim" alone is no proof: so looks a volume with policy Retain whose object was deleted, and its data is to be kept.

use super::{Context, call};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, ResourceExt};
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    time::{Duration, SystemTime},
};

/// Between sweeps.
const EVERY: Duration = Duration::from_secs(60);
/// A younger note may be of a volume that is being made right now: longer than all deadlines on that way together.
const AGE: Duration = Duration::from_secs(60);

/// For whom a volume is being made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// Namespace of the claim.
    pub namespace: String,
    /// Name of the claim.
    pub claim: String,
    /// uid of the claim.
    pub uid: String,
}

/// The notes, a file for each volume that is being made, named as the volume.
pub struct Intents {
    folder: PathBuf,
}

impl Intents {
    /// Notes in this folder, which is made when it is needed.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// Notes that this volume is about to be made. A note that is there becomes young again.
    pub async fn begin(&self, volume: &str, claim: &PersistentVolumeClaim) -> Result<(), String> {
        let intent = Intent {
            namespace: claim.namespace().unwrap_or_default(),
            claim: claim.name_any(),
            uid: claim.uid().unwrap_or_default(),
        };
        let write = async {
            tokio::fs::create_dir_all(&self.folder).await?;
            let new = self.folder.join(format!(".{volume}"));
            tokio::fs::write(&new, serde_json::to_vec(&intent)?).await?;
            tokio::fs::rename(&new, self.folder.join(volume)).await
        };
        write.await.map_err(|error| format!("cannot write to {}: {error}", self.folder.display()))
    }

    /// The volume has its object, or is gone.
    pub async fn end(&self, volume: &str) {
        match tokio::fs::remove_file(self.folder.join(volume)).await {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            // The sweep looks at it again.
            Err(error) => tracing::warn!(volume, %error, "cannot remove the note of a volume that was made"),
        }
    }

    /// Notes that are at least so old, with their volumes' names.
    pub async fn old(&self, age: Duration) -> std::io::Result<Vec<(String, Intent)>> {
        let mut folder = match tokio::fs::read_dir(&self.folder).await {
            Ok(folder) => folder,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let (mut found, now) = (Vec::new(), SystemTime::now());
        while let Some(entry) = folder.next_entry().await? {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                continue;
            }
            // It may have been removed since: the volume was saved.
            let Ok(written) = entry.metadata().await.and_then(|m| m.modified()) else { continue };
            let Ok(text) = tokio::fs::read(entry.path()).await else { continue };
            if now.duration_since(written).unwrap_or_default() < age {
                continue;
            }
            match serde_json::from_slice(&text) {
                Ok(intent) => found.push((name, intent)),
                Err(error) => {
                    let file = entry.path();
                    tracing::warn!(file = %file.display(), %error, "not a note of a volume; delete the file");
                }
            }
        }
        Ok(found)
    }
}

/// What an old note means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The volume has its object: all went well.
    Forget,
    /// The claim is there and is being worked on.
    Keep,
    /// Nobody wants the volume any more.
    Delete,
}

/// Judges a note: `saved`, whether there is a PersistentVolume of its name; `claim`, the uid of the claim there is now.
pub fn judge(intent: &Intent, saved: bool, claim: Option<&str>) -> Verdict {
    match (saved, claim) {
        (true, _) => Verdict::Forget,
        (false, Some(uid)) if uid == intent.uid => Verdict::Keep,
        (false, _) => Verdict::Delete,
    }
}

/// At start and every minute, until it is dropped.
pub(super) async fn sweep_for_ever(context: &Context) {
    let mut ticks = tokio::time::interval(EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        sweep(context, AGE).await;
    }
}

/// Looks at all notes of this age once.
pub(super) async fn sweep(context: &Context, age: Duration) {
    let old = match context.intents.old(age).await {
        Ok(old) => old,
        Err(error) => {
            tracing::warn!(%error, "cannot read which volumes are being made");
            return;
        }
    };
    for (volume, intent) in old {
        if let Err(words) = settle(context, &volume, &intent).await {
            tracing::warn!(
                volume,
                error = words,
                "a volume that may be left over is looked at again in a minute"
            );
        }
    }
}

async fn settle(context: &Context, volume: &str, intent: &Intent) -> Result<(), String> {
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), &intent.namespace);
    let volumes: Api<PersistentVolume> = Api::all(context.client.clone());
    // The claim first: a claim that is gone gets no new object, so what is missing then stays missing.
    let claim = call(claims.get_opt(&intent.claim)).await.map_err(|error| error.to_string())?;
    let saved = call(volumes.get_opt(volume)).await.map_err(|error| error.to_string())?.is_some();
    match judge(intent, saved, claim.and_then(|claim| claim.metadata.uid).as_deref()) {
        Verdict::Keep => return Ok(()),
        Verdict::Forget => {}
        Verdict::Delete => {
            for id in context.driver.find(volume).await.map_err(|refusal| refusal.to_string())? {
                context.driver.delete(&id).await.map_err(|refusal| refusal.to_string())?;
                let claim = format!("{}/{}", intent.namespace, intent.claim);
                tracing::info!(volume, id, claim, "deleted a volume whose claim went before it was ready");
            }
        }
    }
    context.intents.end(volume).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn intent() -> Intent {
        Intent { namespace: "shop".into(), claim: "pgdata-orders-0".into(), uid: "0b5a".into() }
    }

    #[test]
    fn only_volumes_without_object_and_claim_are_deleted() {
        assert_eq!(judge(&intent(), true, None), Verdict::Forget);
        assert_eq!(judge(&intent(), true, Some("0b5a")), Verdict::Forget);
        assert_eq!(judge(&intent(), false, Some("0b5a")), Verdict::Keep);
        assert_eq!(judge(&intent(), false, Some("newer")), Verdict::Delete);
        assert_eq!(judge(&intent(), false, None), Verdict::Delete);
    }

    #[tokio::test]
    async fn notes_are_written_read_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let intents = Intents::new(folder.path().join("intents"));
        assert_eq!(intents.old(Duration::ZERO).await.unwrap(), []);
        let claim: PersistentVolumeClaim = serde_json::from_value(
            json!({"metadata": {"name": "pgdata-orders-0", "namespace": "shop", "uid": "0b5a"}}),
        )
        .unwrap();
        intents.begin("pvc-0b5a", &claim).await.unwrap();
        intents.begin("pvc-0b5a", &claim).await.unwrap();
        assert_eq!(intents.old(Duration::ZERO).await.unwrap(), [("pvc-0b5a".into(), intent())]);
        assert_eq!(intents.old(Duration::from_secs(3600)).await.unwrap(), []);
        intents.end("pvc-0b5a").await;
        intents.end("pvc-0b5a").await;
        assert_eq!(intents.old(Duration::ZERO).await.unwrap(), []);
    }
}
