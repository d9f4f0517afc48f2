//! What a container's program is given, and what it gives back.

use crate::{Clock, Session};
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

/// How a container's program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// The exit code.
    pub code: i32,
    /// The termination message. Empty: what [`Host::message`] wrote last.
    pub message: String,
}

/// What runs in pods. One program stands for all containers of a pod.
pub trait Programs: Send + Sync + 'static {
    /// Runs the program of a pod whose volumes are mounted. The kubelet drops the future where a real one would kill the
    /// container (the grace period is over, the pod was deleted by force, [`super::Cluster::kill`]), and runs it anew where the pod's
    /// restart policy says so.
    fn run(&self, host: Host) -> BoxFuture<'static, Exit>;
}

/// A pod from inside.
pub struct Host {
    /// The pod as it was when this container was started.
    pub pod: Pod,
    /// How often this pod's container was restarted before.
    pub restarts: i32,
    /// A client as the pod, in its namespace. It ends with this container.
    pub client: kube::Client,
    /// The client's session, for faults between this container and the API server.
    pub session: Session,
    /// The time.
    pub clock: Clock,
    pub(crate) ready: watch::Sender<bool>,
    pub(crate) stop: watch::Receiver<bool>,
    pub(crate) message: watch::Sender<String>,
}

impl Host {
    /// What the readiness probe says from now on. It begins as not ready. Containers without such a probe are ready while
    /// they run.
    pub fn ready(&self, ready: bool) {
        self.ready.send_if_modified(|now| std::mem::replace(now, ready) != ready);
    }

    /// Writes the termination message, as to /dev/termination-log: it is read however the container ends.
    pub fn message(&self, text: &str) {
        self.message.send_replace(text.into());
    }

    /// Completes when the container gets SIGTERM.
    pub async fn told_to_stop(&self) {
        // A kubelet that is gone has ended the program anyway.
        let _ = self.stop.clone().wait_for(|stop| *stop).await;
    }
}
