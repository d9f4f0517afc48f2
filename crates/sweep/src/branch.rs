//! Copies of a world in the middle of its life: of a plan, only what follows its trouble has to be run.
//!
//! A world lives on one thread, on a paused clock and without a socket, so that the process that it lives in can be forked: at
//! the beginning of the part in which things go wrong, and at each write. The copy goes on with the trouble, tells how it ended
//! and is gone; the original waits meanwhile, and goes on as if nothing had been. A plan ends in a copy as it does alone
//! (`sweep --plan`), where nothing is forked.

use crate::{
    operators::Operator,
    plan::{Plan, Trouble},
    run::Ending,
    world::{Coming, NextLife, Stale},
};
use fork::{Fork, fork, waitpid};
use holdfast_testkit::Fault;
use std::{
    io::{PipeWriter, Read, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The plans of one process.
#[derive(Clone)]
pub struct Branches(Arc<Mutex<Inner>>);

struct Inner {
    waiting: Vec<Plan>,
    /// In a copy: where its ending goes.
    copy: Option<PipeWriter>,
    tell: Tell,
}

/// What is heard of plans.
pub enum Heard {
    /// It begins.
    Begun(Plan),
    /// It has ended.
    Ended(Plan, Box<Ending>),
}

type Tell = Box<dyn FnMut(Heard) + Send>;

impl Branches {
    /// These plans, all of one workload; `tell` hears of each.
    pub fn new(plans: Vec<Plan>, tell: impl FnMut(Heard) + Send + 'static) -> Self {
        Self(Arc::new(Mutex::new(Inner { waiting: plans, copy: None, tell: Box::new(tell) })))
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs the plans whose trouble is there from the beginning. In a copy: its plan.
    pub fn at_start(&self) -> Option<Plan> {
        self.each(|plan| write_of(plan).is_none())
    }

    /// Runs the plans whose trouble comes at this write. In a copy: what strikes. `revision` was the server's at the beginning,
    /// `coming` is told what the next life begins with.
    pub fn at_write(&self, who: Operator, number: u64, revision: u64, coming: &Coming) -> Option<Fault> {
        let plan = self.each(|plan| write_of(plan) == Some((who, number)))?;
        match plan.troubles.first() {
            Some(Trouble::At(_, _, fault)) => Some(*fault),
            Some(Trouble::Stale(_, _, back)) => {
                let stale = Some(Stale { back: *back, not_before: revision });
                let next = NextLife { rules: Vec::new(), stale };
                coming.lock().unwrap_or_else(PoisonError::into_inner).push((who, next));
                Some(Fault::DieAfter)
            }
            _ => None,
        }
    }

    /// In a copy: tells how it ended, and is gone. In the original: nothing.
    pub fn end(&self, ending: &Ending) {
        let mut inner = self.inner();
        if let Some(pipe) = inner.copy.take() {
            tell(pipe, ending);
        }
    }

    /// A copy for each of these plans, one after the other.
    fn each(&self, is: impl Fn(&Plan) -> bool) -> Option<Plan> {
        let mut inner = self.inner();
        if inner.copy.is_some() {
            return None;
        }
        while let Some(index) = inner.waiting.iter().position(&is) {
            let plan = inner.waiting.remove(index);
            (inner.tell)(Heard::Begun(plan.clone()));
            match copied() {
                Ok(Copied::Copy(pipe)) => {
                    inner.copy = Some(pipe);
                    return Some(plan);
                }
                Ok(Copied::Original(told, status)) => {
                    let ending = serde_json::from_slice(&told).unwrap_or_else(|_| Ending {
                        problems: vec![format!("it ended by itself (status {status}), see above")],
                        ..Ending::default()
                    });
                    (inner.tell)(Heard::Ended(plan, Box::new(ending)));
                }
                Err(error) => {
                    let ending = Ending {
                        problems: vec![format!("the process cannot be copied: {error}")],
                        ..Ending::default()
                    };
                    (inner.tell)(Heard::Ended(plan, Box::new(ending)));
                }
            }
        }
        None
    }
}

/// The write at which a plan's only trouble comes.
fn write_of(plan: &Plan) -> Option<(Operator, u64)> {
    match plan.troubles[..] {
        [Trouble::At(who, number, _) | Trouble::Stale(who, number, _)] => Some((who, number)),
        _ => None,
    }
}

/// Which of the two a process is after [`copied`].
pub enum Copied {
    /// The copy, and where it is to say what came of it.
    Copy(PipeWriter),
    /// The original, what the copy said, and the status with which it ended.
    Original(Vec<u8>, i32),
}

/// In a copy: says something, and is gone.
pub fn tell(mut pipe: PipeWriter, what: &impl serde::Serialize) -> ! {
    let told = serde_json::to_vec(what).map_err(std::io::Error::from).and_then(|told| pipe.write_all(&told));
    // Without a word the original says that there is none.
    std::process::exit(i32::from(told.is_err()));
}

/// Forks; the original waits for what the copy says. Errors: it cannot be, since other threads run in this process.
pub fn copied() -> std::io::Result<Copied> {
    // What another thread holds at this moment would be held in the copy for ever.
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(std::io::Error::other(format!(
            "{threads} threads run in it, and only one would be copied"
        )));
    }
    let (mut reader, writer) = std::io::pipe()?;
    match fork()? {
        Fork::Child => Ok(Copied::Copy(writer)),
        Fork::Parent(pid) => {
            drop(writer);
            let mut told = Vec::new();
            reader.read_to_end(&mut told)?;
            let status = waitpid(pid)?;
            Ok(Copied::Original(told, status))
        }
    }
}
