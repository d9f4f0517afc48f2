//! The rest of Kubernetes, as far as the operators can see it: the controllers of StatefulSets, Jobs, claims and
//! EndpointSlices, the scheduler, the garbage collector, and kubelets whose containers are [`Programs`].
//!
//! Each is level-triggered like the real one and writes under a name of its own, so an operator's counted writes are its own
//! alone. All run in one task on the runtime of [`Cluster::start`], on its paused clock: a change is taken up a moment
//! later ([`PACE`]), by every controller in a fixed order, and what one of them writes is seen by the others a moment after that.

mod desk;
mod host;
mod jobs;
mod kubelet;
mod replica;
mod report;
mod run;
mod schedule;
mod sets;
mod slices;
mod volumes;

pub use host::{Exit, Host, Programs};

use crate::{Server, rest::State, server::Shared, store::Change};
use desk::{Desk, Memory, NODES, Places, VOLUMES};
use kubelet::{Ground, Kubelets};
use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Between a change and the controllers that take it up.
pub const PACE: Duration = Duration::from_millis(10);

/// What tests can do to the cluster.
#[derive(Debug, Default)]
struct Knobs {
    hold_pods: bool,
    hold_claims: bool,
    hold_expansion: bool,
    failing: BTreeSet<String>,
    lost: BTreeSet<String>,
    /// Nodes that came back since the last pass.
    returned: BTreeSet<String>,
}

/// Says that something happened that no object shows yet.
#[derive(Debug, Default)]
struct Poke {
    poked: AtomicBool,
    notify: Notify,
}

impl Poke {
    fn poke(&self) {
        self.poked.store(true, Ordering::SeqCst);
        self.notify.notify_one();
    }
}

struct Inside {
    knobs: Knobs,
    memory: Memory,
    kubelets: Kubelets,
    /// The revision up to which changes were taken up.
    seen: u64,
}

struct Inner {
    server: Server,
    programs: Arc<dyn Programs>,
    poke: Arc<Poke>,
    places: Places,
    inside: Mutex<Inside>,
}

/// What runs beside the API server. Cheap to clone: all clones are the same cluster. It ends, with every program, when the
/// last of them is dropped.
#[derive(Clone)]
pub struct Cluster {
    inner: Arc<Inner>,
}

impl Cluster {
    /// Makes three nodes (`node-1` to `node-3`, each in a zone of its own) and the StorageClasses `standard` (the default;
    /// volumes grow) and `fixed` (they do not), and starts the controllers. Call it within a tokio runtime.
    pub fn start(server: &Server, programs: Arc<dyn Programs>) -> Self {
        let places = {
            let mut state = server.shared.state();
            let places = Places::of(&state);
            let mut memory = Memory::default();
            let mut desk = Desk { state: &mut state, memory: &mut memory, at: places, now: Instant::now() };
            // The only way to fail is that they are there.
            for class in volumes::classes() {
                let _ = desk.create(VOLUMES, places.classes, "", class);
            }
            for node in schedule::nodes() {
                let _ = desk.create(NODES, places.nodes, "", node);
            }
            schedule::watch_nodes(&mut desk, &Knobs::default());
            places
        };
        let inside = Inside {
            knobs: Knobs::default(),
            memory: Memory::default(),
            kubelets: Kubelets::default(),
            seen: 0,
        };
        let poke = Arc::new(Poke::default());
        let inner = Inner {
            server: server.clone(),
            programs,
            poke: Arc::clone(&poke),
            places,
            inside: Mutex::new(inside),
        };
        let inner = Arc::new(inner);
        server.shared.wake();
        tokio::spawn(run(Arc::downgrade(&inner), Arc::clone(&server.shared), poke));
        Self { inner }
    }

    /// Kills the containers of a pod: exit code 137, without a SIGTERM before. Returns whether they ran.
    pub fn kill(&self, namespace: &str, pod: &str) -> bool {
        self.turn(|inside| inside.kubelets.kill(namespace, pod))
    }

    /// While it is true, no node has room: pods that are not bound yet stay Pending, Unschedulable.
    pub fn hold_pods(&self, hold: bool) {
        self.turn(|inside| inside.knobs.hold_pods = hold);
    }

    /// While it is true, no volumes are made: claims that are not bound yet stay Pending, and their pods with them.
    pub fn hold_claims(&self, hold: bool) {
        self.turn(|inside| inside.knobs.hold_claims = hold);
    }

    /// While it is true, growths do not come to their end: claims say Resizing.
    pub fn hold_expansion(&self, hold: bool) {
        self.turn(|inside| inside.knobs.hold_expansion = hold);
    }

    /// From now on this image cannot be pulled: containers that are to begin with it wait, ImagePullBackOff.
    pub fn fail_image(&self, image: &str) {
        self.turn(|inside| inside.knobs.failing.insert(image.into()));
    }

    /// From now on this image can be pulled again.
    pub fn mend_image(&self, image: &str) {
        self.turn(|inside| inside.knobs.failing.remove(image));
    }

    /// A node loses its power: its programs end, and their pods stay as they are until the node is declared lost after 40 s
    /// (not Ready) and they are evicted after 300 s more (deleted, but there until the node returns or somebody deletes them
    /// by force).
    pub fn lose_node(&self, node: &str) {
        self.turn(|inside| {
            inside.knobs.lost.insert(node.into());
            inside.kubelets.lose(node);
        });
    }

    /// A lost node has its power again: containers of pods that are still there are started anew.
    pub fn return_node(&self, node: &str) {
        self.turn(|inside| {
            if inside.knobs.lost.remove(node) {
                inside.knobs.returned.insert(node.into());
            }
        });
    }

    /// Whether a controller has work to do: a change to take up, or a time that it waits for (a container's start, the pause
    /// before a restart, a pod's grace period). What is held, and deadlines of Jobs that run, are no work.
    pub fn busy(&self) -> bool {
        let inside = self.inner.inside();
        if self.inner.poke.poked.load(Ordering::SeqCst) || inside.memory.work {
            return true;
        }
        let state = self.inner.server.shared.state();
        self.inner.news(&state, &inside) != News::None
    }

    /// Waits until the cluster is not busy, but not longer than this. Returns whether it is at rest.
    pub async fn rest(&self, within: Duration) -> bool {
        let end = Instant::now() + within;
        while self.busy() {
            if Instant::now() >= end {
                return false;
            }
            tokio::time::sleep(PACE).await;
        }
        true
    }

    fn turn<T>(&self, change: impl FnOnce(&mut Inside) -> T) -> T {
        let result = change(&mut self.inner.inside());
        self.inner.poke.poke();
        result
    }
}

/// What changed since the last pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum News {
    None,
    /// Something that the controllers look at.
    Objects,
    /// Something that the garbage collector looks at, too.
    Garbage,
}

impl Inner {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        // What a panic left half done is done again: every controller starts from what there is.
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn news(&self, state: &State, inside: &Inside) -> News {
        if inside.seen < state.store.compacted {
            return News::Garbage;
        }
        let at = &self.places;
        let looked_at = |change: &Change| {
            let kind = change.key.kind;
            [
                at.pods,
                at.claims,
                at.volumes,
                at.classes,
                at.sets,
                at.revisions,
                at.jobs,
                at.services,
                at.slices,
            ]
            .contains(&kind)
                || [at.nodes, at.accounts].contains(&kind)
                || (inside.memory.mounts && [at.secrets, at.config_maps].contains(&kind))
        };
        let mut news = News::None;
        for change in state.store.since(inside.seen) {
            if is_garbage(change) {
                return News::Garbage;
            }
            if looked_at(change) {
                news = News::Objects;
            }
        }
        news
    }

    /// One look of every controller at everything.
    fn pass(&self) {
        let mut inside = self.inside();
        self.poke.poked.store(false, Ordering::SeqCst);
        let inside = &mut *inside;
        let shared = &self.server.shared;
        let mut state = shared.state();
        let news = self.news(&state, inside);
        inside.seen = state.store.revision;
        let before = inside.seen;
        inside.memory.begin();
        let mut desk =
            Desk { state: &mut state, memory: &mut inside.memory, at: self.places, now: Instant::now() };
        // Against the stream: what one writes the next one downstream sees in the next pass, a moment later.
        let ground = Ground { shared, programs: &self.programs, poke: &self.poke };
        inside.kubelets.sync(&mut desk, &inside.knobs, &ground);
        schedule::watch_nodes(&mut desk, &inside.knobs);
        slices::sync(&mut desk);
        volumes::sync(&mut desk, &inside.knobs);
        schedule::sync(&mut desk, &inside.knobs);
        jobs::sync(&mut desk);
        sets::sync(&mut desk);
        inside.memory.end();
        inside.knobs.returned.clear();
        let changed = state.store.revision != before;
        drop(state);
        if changed {
            shared.wake();
        }
        if news == News::Garbage {
            self.server.collect();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // The task finds nobody to work for, and ends.
        self.poke.notify.notify_one();
    }
}

/// Whether a change may leave something to collect: something goes, or somebody names an owner.
fn is_garbage(change: &Change) -> bool {
    let Some(after) = &change.after else { return true };
    let owners = |object: &serde_json::Value| object["metadata"].get("ownerReferences").cloned();
    desk::is_going(after)
        || (owners(after).is_some()
            && change.before.as_ref().is_none_or(|before| owners(before) != owners(after)))
}

async fn run(inner: Weak<Inner>, shared: Arc<Shared>, poke: Arc<Poke>) {
    let mut changed = shared.changed.subscribe();
    drop(shared);
    loop {
        // Taken before the look, so that nothing that comes after it is missed.
        changed.borrow_and_update();
        let due = {
            let Some(inner) = inner.upgrade() else { return };
            let mut inside = inner.inside();
            let state = inner.server.shared.state();
            let news = inner.news(&state, &inside);
            if news == News::None {
                inside.seen = state.store.revision;
            }
            if news != News::None || poke.poked.load(Ordering::SeqCst) {
                Some(Instant::now() + PACE)
            } else {
                inside.memory.due
            }
        };
        let now = Instant::now();
        if let Some(due) = due
            && due <= now + PACE
        {
            tokio::time::sleep_until(due.max(now)).await;
            let Some(inner) = inner.upgrade() else { return };
            inner.pass();
            continue;
        }
        let far = now + Duration::from_secs(24 * 3600);
        tokio::select! {
            biased;
            result = changed.changed() => if result.is_err() { return },
            () = poke.notify.notified() => {}
            () = tokio::time::sleep_until(due.unwrap_or(far)) => {}
        }
    }
}
