//! Faults on demand: calls that fail or take long, and volumes that go away, take no writes, are lost or slow.

use crate::{
    attachment::{at, speed},
    device,
    pool::{Pool, Volume},
    rules::{self, Kind},
};
use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::{Api, Client, Config, config::Kubeconfig};
use serde::{Deserialize, Serialize};
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long Kubernetes may take to say which volume a claim has.
const LOOKUP: Duration = Duration::from_secs(10);

/// All calls that faults can be put on.
pub const CALLS: &[&str] = &[
    "GetPluginInfo",
    "GetPluginCapabilities",
    "Probe",
    "CreateVolume",
    "DeleteVolume",
    "ValidateVolumeCapabilities",
    "ListVolumes",
    "GetCapacity",
    "ControllerGetCapabilities",
    "CreateSnapshot",
    "DeleteSnapshot",
    "ListSnapshots",
    "ControllerExpandVolume",
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeGetVolumeStats",
    "NodeExpandVolume",
    "NodeGetCapabilities",
    "NodeGetInfo",
    "GetInfo",
    "NotifyRegistrationStatus",
];

/// What the admin socket is told, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "order", rename_all = "kebab-case")]
pub enum Order {
    /// The next calls of this kind fail.
    Fail {
        /// The call's name.
        kind: String,
        /// How many.
        count: u32,
        /// What they say.
        message: String,
    },
    /// The next calls of this kind begin later.
    Delay {
        /// The call's name.
        kind: String,
        /// By how much.
        seconds: f64,
        /// How many.
        count: u32,
    },
    /// The device goes away.
    Detach {
        /// The volume.
        volume: String,
    },
    /// The volume takes no writes, or does again.
    ReadOnly {
        /// The volume.
        volume: String,
        /// Does again.
        off: bool,
    },
    /// The content is gone for good.
    Lose {
        /// The volume.
        volume: String,
    },
    /// The volume is slow.
    Slow {
        /// The volume.
        volume: String,
        /// Bytes a second; 0 is as fast as its class says.
        bytes: u64,
    },
    /// Ends what can be ended.
    Clear,
    /// Tells what there is.
    List,
}

/// What the admin socket answers, as one line of JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// It was done.
    pub ok: bool,
    /// What was done, or why not.
    pub text: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Effect {
    Fail(String),
    Delay(Duration),
}

#[derive(Clone, Debug, PartialEq)]
struct Rule {
    kind: String,
    left: u32,
    effect: Effect,
}

/// What is to happen to the next calls.
#[derive(Clone, Default)]
pub struct Rules(Arc<Mutex<Vec<Rule>>>);

/// What happens to one call.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// It begins so much later.
    pub delay: Duration,
    /// And then fails with these words.
    pub failure: Option<String>,
}

impl Rules {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Rule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, kind: &str, left: u32, effect: Effect) -> Result<()> {
        // A fault that was misspelt would let a test pass for the wrong reason.
        if !CALLS.contains(&kind) {
            return Err(anyhow!("there is no call {kind:?}; there are {}", CALLS.join(", ")));
        }
        if left > 0 {
            self.lock().push(Rule { kind: kind.into(), left, effect });
        }
        Ok(())
    }

    /// Counts a call: the oldest delay and the oldest failure put on its kind apply.
    pub fn judge(&self, kind: &str) -> Verdict {
        let (mut rules, mut verdict, mut delayed) = (self.lock(), Verdict::default(), false);
        for rule in rules.iter_mut().filter(|rule| rule.kind == kind) {
            match &rule.effect {
                Effect::Delay(by) if !delayed => (verdict.delay, delayed) = (*by, true),
                Effect::Fail(message) if verdict.failure.is_none() => verdict.failure = Some(message.clone()),
                _ => continue,
            }
            rule.left -= 1;
        }
        rules.retain(|rule| rule.left > 0);
        verdict
    }

    fn lines(&self) -> Vec<String> {
        let line = |rule: &Rule| match &rule.effect {
            Effect::Fail(message) => format!("{}: the next {} fail: {message}", rule.kind, rule.left),
            Effect::Delay(by) => {
                format!("{}: the next {} begin {} s later", rule.kind, rule.left, by.as_secs_f64())
            }
        };
        self.lock().iter().map(line).collect()
    }
}

/// Carries out what the admin socket is told.
pub struct Admin {
    /// The pool.
    pub pool: Arc<Pool>,
    /// What is to happen to calls.
    pub rules: Rules,
    /// How to ask Kubernetes which volume a claim has.
    pub kubeconfig: Option<PathBuf>,
}

impl Admin {
    /// Carries out one order; the text says what it did.
    pub async fn obey(&self, order: Order) -> Result<String> {
        let many = |count: u32| if count == 1 { "call".to_string() } else { format!("{count} calls") };
        match order {
            Order::Fail { kind, count, message } => {
                self.rules.add(&kind, count, Effect::Fail(message))?;
                Ok(format!("the next {} of {kind} will fail", many(count)))
            }
            Order::Delay { kind, seconds, count } => {
                let by = Duration::try_from_secs_f64(seconds).context("the delay")?;
                self.rules.add(&kind, count, Effect::Delay(by))?;
                Ok(format!("the next {} of {kind} will begin {seconds} s later", many(count)))
            }
            Order::Detach { volume } => {
                let (id, mut volume, _turn) = self.take(&volume).await?;
                let attached = self.pool.attachment(&id, &volume)?.is_some();
                self.pool.pull(&id, &mut volume).await.map_err(words)?;
                let now = if attached { "its device went away" } else { "it was attached nowhere" };
                Ok(format!("{id} ({}): {now}", volume.name))
            }
            Order::ReadOnly { volume, off } => self.read_only(&volume, off).await,
            Order::Lose { volume } => self.lose(&volume).await,
            Order::Slow { volume, bytes } => {
                let (id, mut volume, _turn) = self.take(&volume).await?;
                self.slow(&id, &mut volume, (bytes > 0).then_some(bytes))?;
                Ok(format!("{id} ({}): {} bytes a second", volume.name, volume.faults.slow.unwrap_or(0)))
            }
            Order::Clear => self.clear().await,
            Order::List => self.list(),
        }
    }

    async fn take(&self, volume: &str) -> Result<(String, Volume, impl Sized + use<>)> {
        let id = self.resolve(volume).await?;
        let turn = self.pool.lock(&[&id]).await.map_err(words)?;
        let volume = self.pool.volume(&id).map_err(words)?;
        Ok((id, volume, turn))
    }

    /// The id of a volume: itself, or that of a PersistentVolume, or that of NAMESPACE/CLAIM.
    async fn resolve(&self, text: &str) -> Result<String> {
        if rules::is_id(Kind::Volume, text) {
            return Ok(text.into());
        }
        let Some((namespace, claim)) = text.split_once('/') else {
            let all = self.pool.volumes().map_err(words)?;
            let found = all.into_iter().find(|(_, volume)| volume.name == text);
            return found.map(|(id, _)| id).ok_or_else(|| anyhow!("there is no volume {text}"));
        };
        let file = self.kubeconfig.as_ref().context("a claim can only be found with --kubeconfig")?;
        let lookup = async {
            let kubeconfig = Kubeconfig::read_from(file)?;
            let client =
                Client::try_from(Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?)?;
            let claims = Api::<PersistentVolumeClaim>::namespaced(client.clone(), namespace);
            let bound = claims.get(claim).await?.spec.and_then(|spec| spec.volume_name);
            let bound = bound.with_context(|| format!("claim {text} has no volume yet"))?;
            let volume = Api::<PersistentVolume>::all(client).get(&bound).await?;
            let csi = volume.spec.and_then(|spec| spec.csi).filter(|csi| csi.driver == rules::DRIVER);
            csi.map(|csi| csi.volume_handle)
                .with_context(|| format!("volume {bound} of {text} is not this driver's"))
        };
        let found = tokio::time::timeout(LOOKUP, lookup).await.context("Kubernetes does not answer")?;
        found.with_context(|| format!("looking for the volume of claim {text}"))
    }

    async fn read_only(&self, volume: &str, off: bool) -> Result<String> {
        let (id, mut volume, _turn) = self.take(volume).await?;
        let text = self.set_read_only(&id, &mut volume, !off).await?;
        Ok(format!("{id} ({}): {text}", volume.name))
    }

    /// Linux lets writes through to a loop device that was set read-only while in use, so the end that this has for XFS is made at
    /// once: it is shut down as when its log cannot be written, and pods that start later get it read-only.
    async fn set_read_only(&self, id: &str, volume: &mut Volume, on: bool) -> Result<&'static str> {
        let real = self.pool.real(id);
        let mounted =
            self.pool.attachment(id, volume)?.is_some_and(|(_, mounts)| at(&mounts, &real).is_some());
        volume.faults.read_only = on;
        self.pool.save(id, volume).map_err(words)?;
        Ok(match (on, mounted) {
            (true, true) => {
                device::shut_down(&real).await?;
                "its file system is shut down; pods that start later can only read"
            }
            (true, false) => "pods that start later can only read",
            (false, true) if device::is_shut_down(&real) => {
                "takes writes when it is mounted again; delete the pods that have it"
            }
            (false, true) => "takes writes in pods that start from now on",
            (false, false) => "takes writes",
        })
    }

    async fn lose(&self, volume: &str) -> Result<String> {
        let (id, mut volume, _turn) = self.take(volume).await?;
        // First: after it nothing stages the volume, whatever becomes of the rest.
        volume.faults.lost = true;
        self.pool.save(&id, &volume).map_err(words)?;
        self.pool.pull(&id, &mut volume).await.map_err(words)?;
        let image = self.pool.image(Kind::Volume, &id);
        match tokio::fs::remove_file(&image).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", image.display()))
            }
            _ => Ok(format!("{id} ({}): its content is lost", volume.name)),
        }
    }

    fn slow(&self, id: &str, volume: &mut Volume, bytes: Option<u64>) -> Result<()> {
        volume.faults.slow = bytes;
        self.pool.save(id, volume).map_err(words)?;
        match self.pool.attachment(id, volume)? {
            Some((one, _)) => self.pool.throttles.set(&one.device, speed(volume).map_err(words)?),
            None => Ok(()),
        }
    }

    async fn clear(&self) -> Result<String> {
        self.rules.lock().clear();
        let mut lasting = Vec::new();
        for (id, _) in self.pool.volumes().map_err(words)? {
            let _turn = self.pool.lock(&[&id]).await.map_err(words)?;
            let Some(mut volume) = self.pool.find(&id).map_err(words)? else { continue };
            if volume.faults.slow.is_some() {
                self.slow(&id, &mut volume, None)?;
            }
            if volume.faults.read_only {
                self.set_read_only(&id, &mut volume, false).await?;
            }
            lasting.extend(state(&id, &volume));
        }
        lasting.insert(0, "cleared".into());
        Ok(lasting.join("\n"))
    }

    fn list(&self) -> Result<String> {
        let mut lines = self.rules.lines();
        lines.extend(self.pool.volumes().map_err(words)?.iter().filter_map(|(id, volume)| state(id, volume)));
        Ok(lines.join("\n"))
    }
}

/// What is wrong with a volume, in words.
fn state(id: &str, volume: &Volume) -> Option<String> {
    let faults = &volume.faults;
    let mut words = Vec::new();
    words.extend(faults.lost.then(|| "lost".to_string()));
    words.extend((faults.detached && !faults.lost).then(|| "detached until it is staged again".to_string()));
    words.extend(faults.read_only.then(|| "read-only".to_string()));
    words.extend(faults.slow.map(|bytes| format!("{bytes} bytes a second")));
    (!words.is_empty()).then(|| format!("{id} ({}): {}", volume.name, words.join(", ")))
}

fn words(status: tonic::Status) -> anyhow::Error {
    anyhow!("{}", status.message())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_apply_to_their_calls_and_run_out() {
        let rules = Rules::default();
        rules.add("NodeStageVolume", 2, Effect::Fail("no agate".into())).unwrap();
        rules.add("NodeStageVolume", 1, Effect::Delay(Duration::from_secs(3))).unwrap();
        rules.add("CreateVolume", 0, Effect::Fail("never".into())).unwrap();
        assert_eq!(rules.judge("NodePublishVolume"), Verdict::default());
        assert_eq!(rules.judge("CreateVolume"), Verdict::default());
        let first = rules.judge("NodeStageVolume");
        assert_eq!((first.delay.as_secs(), first.failure.as_deref()), (3, Some("no agate")));
        let second = rules.judge("NodeStageVolume");
        assert_eq!((second.delay.as_secs(), second.failure.as_deref()), (0, Some("no agate")));
        assert_eq!(rules.judge("NodeStageVolume"), Verdict::default());
        assert!(rules.lines().is_empty());
    }

    #[test]
    fn one_call_uses_up_one_of_several_failures() {
        let rules = Rules::default();
        rules.add("Probe", 1, Effect::Fail("amber".into())).unwrap();
        rules.add("Probe", 1, Effect::Fail("beryl".into())).unwrap();
        assert_eq!(rules.judge("Probe").failure.as_deref(), Some("amber"));
        assert_eq!(rules.judge("Probe").failure.as_deref(), Some("beryl"));
    }

    #[test]
    fn a_call_that_does_not_exist_is_refused() {
        let error =
            Rules::default().add("StageVolume", 1, Effect::Fail(String::new())).unwrap_err().to_string();
        assert!(error.contains("NodeStageVolume"), "{error}");
    }

    #[test]
    fn orders_are_one_line_of_json() {
        let order = Order::ReadOnly { volume: "ns/claim".into(), off: true };
        let line = serde_json::to_string(&order).unwrap();
        assert_eq!(line, r#"{"order":"read-only","volume":"ns/claim","off":true}"#);
        assert_eq!(serde_json::from_str::<Order>(&line).unwrap(), order);
    }
}
