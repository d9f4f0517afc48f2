//! Never two leaders: candidates on an in-memory API server and a paused clock, with everything going wrong between them.
#![allow(clippy::unwrap_used)] // Helpers of tests are tests, too.

use holdfast_runtime::{
    health::Health,
    leader::{DURATION, Elector, RETRY},
};
use holdfast_testkit::{Fault, Nth, On, Rule, Server, Session};
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    time::Duration,
};
use tokio::{
    task::{JoinHandle, LocalSet, spawn_local},
    time::{Instant, sleep},
};

/// Who leads, and how often that changed.
#[derive(Default)]
struct Court {
    leads: RefCell<Vec<&'static str>>,
    terms: Cell<u32>,
    worst: Cell<usize>,
    last: Cell<usize>,
    /// What others had written and a candidate took away.
    overwritten: Cell<usize>,
}

/// One candidate's process, again and again: it waits for the Lease, leads until it loses it, and begins anew.
fn candidate(name: &'static str, session: &Session, court: &Rc<Court>) -> JoinHandle<()> {
    let leases: Api<Lease> = Api::namespaced(session.client("palace"), "palace");
    let court = Rc::clone(court);
    spawn_local(async move {
        let health = Health::default();
        let elector = Elector::new(leases, "throne", name);
        loop {
            let mut held = elector.acquire(&health).await;
            court.leads.borrow_mut().push(name);
            court.terms.set(court.terms.get() + 1);
            court.worst.set(court.worst.get().max(court.leads.borrow().len()));
            drop(elector.hold(&mut held).await);
            court.leads.borrow_mut().retain(|leader| *leader != name);
        }
    })
}

/// Three candidates for ten minutes, during which the one that leads is struck again and again.
async fn reign(fault: Fault, nth: Nth, on: On) -> Rc<Court> {
    let server = Server::new("2026-03-02T10:00:00Z".parse().unwrap(), 5);
    server.namespace("palace");
    let court = Rc::<Court>::default();
    let names = ["anna", "bert", "cleo"];
    let sessions = names.map(|name| server.session(name));
    let lives: Vec<_> =
        names.iter().zip(&sessions).map(|(name, session)| candidate(name, session, &court)).collect();
    for _ in 0..10 {
        let leader = court.leads.borrow().first().copied();
        let struck = names.iter().position(|name| Some(*name) == leader).unwrap_or(0);
        let rule = Rule { on: on.clone(), nth, fault };
        sessions[struck].add_until(rule, Instant::now() + Duration::from_secs(40));
        sleep(Duration::from_secs(60)).await;
    }
    // Nothing goes wrong any more: somebody leads soon.
    sleep(DURATION + RETRY * 4).await;
    court.last.set(court.leads.borrow().len());
    court.overwritten.set(server.overwritten().len());
    lives.iter().for_each(JoinHandle::abort);
    court
}

#[tokio::test(start_paused = true)]
async fn there_are_never_two_and_soon_one() {
    let all = On::any();
    let writes = On::writes();
    LocalSet::new()
        .run_until(async {
            // The leader is cut off, in every way: another one follows, never before it has stopped.
            for fault in [
                Fault::Hang,
                Fault::HangAfter,
                Fault::Reset,
                Fault::LoseAnswer,
                Fault::InternalError,
                Fault::Forbidden,
            ] {
                for on in [&all, &writes] {
                    let court = reign(fault, Nth::All, on.clone()).await;
                    let (worst, last) = (court.worst.get(), court.last.get());
                    assert_eq!((worst, last), (1, 1), "at most at once, in the end: {fault:?} {on:?}");
                    // With writes that land, or are answered with the truth, a leader may keep its Lease.
                    let must_change = matches!(fault, Fault::Hang | Fault::Reset | Fault::Forbidden);
                    assert!(
                        !must_change || court.terms.get() >= 10,
                        "{fault:?}: {} terms",
                        court.terms.get()
                    );
                }
            }
            // Every second or third request fails: the leader stays.
            for fault in [Fault::Conflict, Fault::LoseAnswer, Fault::Reset, Fault::SecondWriter] {
                for k in [2, 3] {
                    let court = reign(fault, Nth::Every(k), writes.clone()).await;
                    assert_eq!(
                        (court.worst.get(), court.terms.get(), court.last.get(), court.overwritten.get()),
                        (1, 1, 1, 0),
                        "{fault:?} at every {k}th write"
                    );
                }
            }
        })
        .await;
}
