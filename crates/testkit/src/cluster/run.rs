//! A container's program as a task.

use super::{
    Poke,
    host::{Exit, Host, Programs},
};
use crate::{Clock, Session};
use futures::FutureExt;
use k8s_openapi::api::core::v1::Pod;
use std::{
    panic::AssertUnwindSafe,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::watch, task::AbortHandle, time::Instant};

/// A program that runs. Dropping it ends the program.
pub(super) struct Live {
    session: Session,
    task: AbortHandle,
    ready: watch::Receiver<bool>,
    stop: watch::Sender<bool>,
    message: watch::Receiver<String>,
    exit: Arc<Mutex<Option<Exit>>>,
    /// When it was started, as objects carry it.
    pub since: String,
    /// When it was started.
    pub from: Instant,
    killed: bool,
}

impl Live {
    pub fn start(
        programs: &Arc<dyn Programs>,
        poke: &Arc<Poke>,
        session: Session,
        (pod, namespace, restarts): (Pod, &str, i32),
        clock: Clock,
    ) -> Self {
        let (ready_in, ready) = watch::channel(false);
        let (stop, stop_out) = watch::channel(false);
        let (message_in, message) = watch::channel(String::new());
        let host = Host {
            pod,
            restarts,
            client: session.client(namespace),
            session: session.clone(),
            clock,
            ready: ready_in,
            stop: stop_out,
            message: message_in,
        };
        let exit = Arc::new(Mutex::new(None));
        let (programs, poke, slot) = (Arc::clone(programs), Arc::clone(poke), Arc::clone(&exit));
        let mut seen = ready.clone();
        let task = tokio::spawn(async move {
            let program = async move { programs.run(host).await };
            let mut program = pin!(AssertUnwindSafe(program).catch_unwind());
            let end = loop {
                tokio::select! {
                    biased;
                    end = &mut program => break end,
                    Ok(()) = seen.changed() => poke.poke(),
                }
            };
            // A program that panics has told the test's output why.
            let end = end.unwrap_or_else(|_| Exit { code: 101, message: "the program panicked".into() });
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
            poke.poke();
        });
        let (since, from) = (clock.stamp(), Instant::now());
        Self { session, task: task.abort_handle(), ready, stop, message, exit, since, from, killed: false }
    }

    pub fn is_ready(&self) -> bool {
        !self.killed && *self.ready.borrow()
    }

    /// SIGTERM.
    pub fn tell_to_stop(&self) {
        self.stop.send_if_modified(|stop| !std::mem::replace(stop, true));
    }

    /// SIGKILL: nothing that it sends arrives from now on.
    pub fn kill(&mut self) {
        if self.exit().is_none() {
            self.killed = true;
            self.session.kill();
            self.task.abort();
        }
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        let message = || self.message.borrow().clone();
        if self.killed {
            return Some(Exit { code: 137, message: message() });
        }
        let exit = self.exit.lock().unwrap_or_else(PoisonError::into_inner).clone();
        exit.map(|exit| if exit.message.is_empty() { Exit { message: message(), ..exit } } else { exit })
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.session.kill();
        self.task.abort();
    }
}
