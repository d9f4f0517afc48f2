use super::*;
use crate::Lsn;
use holdfast_core::crd::database::DurabilityMode;
use std::time::Duration;

fn holder(pod: &str) -> Holder {
    Holder { pod: pod.into(), uid: format!("uid-{pod}"), nonce: format!("nonce-{pod}") }
}

fn record() -> Record {
    Record {
        holder: Some(holder("orders-0")),
        last_holder: "orders-0".into(),
        term: 4,
        timeline: 2,
        data_set: "d1".into(),
        system_identifier: "77".into(),
        synchronous: vec!["orders-1".into(), "orders-2".into()],
        confirmations: 1,
        members: (0..3).map(|n| format!("orders-{n}")).collect(),
        hand_over: None,
        switchover: None,
    }
}

fn call() -> Call {
    Call { term: 5, version: 40, lease_uid: "l1".into(), candidate: "orders-2".into(), data_set: "d1".into() }
}

fn view(pod: &str) -> View {
    View {
        me: holder(pod),
        data_set: "d1".into(),
        system_identifier: "77".into(),
        durability: DurabilityMode::Required,
        standbys: 1,
        members: (0..3).map(|n| format!("orders-{n}")).collect(),
        data: Data::Present { data_set: "d1".into(), system_identifier: "77".into(), unled: false },
        server: Server::Standby { timeline: 2, flushed: Lsn(500), streaming: false },
        lease: Some(record()),
        unchanged: Duration::from_secs(7),
        consent: None,
        ttl: Duration::from_secs(6),
        holder_terminated: false,
        votes: Vec::new(),
        version: 40,
        promise: Promise::default(),
        polled: false,
    }
}

fn vote_of(pod: &str, flushed: u64) -> Vote {
    Vote {
        pod: pod.into(),
        term: 5,
        data_set: "d1".into(),
        system_identifier: "77".into(),
        timeline: 2,
        flushed: Lsn(flushed),
        leads: false,
        promised: true,
    }
}

#[test]
fn a_live_lease_is_followed_and_a_rival_fenced() {
    let fresh = View { unchanged: Duration::from_secs(1), ..view("orders-1") };
    assert_eq!(decide(&fresh), Action::Follow("orders-0".into()));
    let bound = View { promise: Promise { term: 5, version: 40 }, ..fresh.clone() };
    assert!(matches!(decide(&bound), Action::Wait(_)));
    assert_eq!(decide(&View { version: 41, ..bound }), Action::Follow("orders-0".into()));
    let rival = View { server: Server::Primary { timeline: 2 }, ..fresh };
    assert_eq!(decide(&rival), Action::Fence);
    // Also when the Lease has run out: the right to write ended with it.
    assert_eq!(decide(&View { unchanged: Duration::from_secs(60), ..rival }), Action::Fence);
}

#[test]
fn takeover_needs_promises_that_cover_every_commit() {
    assert_eq!(decide(&view("orders-1")), Action::Poll);
    // R = |S| - W + 1 = 2: alone it may miss what orders-2 confirmed.
    let alone = View { polled: true, ..view("orders-1") };
    assert!(matches!(decide(&alone), Action::Wait(_)));
    let two = View { votes: vec![vote_of("orders-2", 500)], ..alone.clone() };
    let Action::Take(taken) = decide(&two) else { panic!("{:?}", decide(&two)) };
    assert_eq!((taken.term, taken.timeline, taken.last_holder.as_str()), (5, 3, "orders-1"));
    assert_eq!(
        (taken.synchronous, taken.confirmations),
        (vec!["orders-2".to_string(), "orders-0".to_string()], 1)
    );
    // A promise for an earlier term is none, and a member without data proves nothing.
    for bad in
        [Vote { term: 4, ..vote_of("orders-2", 500) }, Vote { timeline: 0, ..vote_of("orders-2", 500) }]
    {
        assert!(matches!(decide(&View { votes: vec![bad], ..alone.clone() }), Action::Wait(_)));
    }
}

#[test]
fn promises_that_came_to_nothing_do_not_stand_in_the_way() {
    // Three called one after another before there was a Lease; the first one's term, 1, took it. All promised 3 since.
    let mut view = View { promise: Promise { term: 3, version: 0 }, polled: true, ..view("orders-1") };
    if let Some(lease) = &mut view.lease {
        lease.term = 1;
    }
    assert_eq!(view.next_term(), 4, "term 2 is one that nobody would answer");
    view.votes = vec![Vote { term: 4, ..vote_of("orders-2", 500) }];
    let Action::Take(taken) = decide(&view) else { panic!("{:?}", decide(&view)) };
    assert_eq!(taken.term, 4);
    assert_eq!(
        View { promise: Promise { term: 2, version: 0 }, ..self::view("orders-1") }.next_term(),
        5,
        "the Lease's own counts, too"
    );
}

#[test]
fn the_most_advanced_wins_and_of_equals_the_first() {
    let polled = View { polled: true, ..view("orders-1") };
    assert!(matches!(
        decide(&View { votes: vec![vote_of("orders-2", 501)], ..polled.clone() }),
        Action::Wait(_)
    ));
    let second = View { polled: true, votes: vec![vote_of("orders-1", 500)], ..view("orders-2") };
    assert!(matches!(decide(&second), Action::Wait(_)));
    let leads = Vote { leads: true, ..vote_of("orders-0", 400) };
    assert!(matches!(
        decide(&View { votes: vec![vote_of("orders-2", 1), leads], ..polled }),
        Action::Wait(_)
    ));
}

#[test]
fn a_standby_left_behind_on_an_older_timeline_cannot_lead() {
    let old = View {
        server: Server::Standby { timeline: 1, flushed: Lsn(900), streaming: false },
        polled: true,
        votes: vec![vote_of("orders-2", 500)],
        ..view("orders-1")
    };
    assert!(matches!(decide(&old), Action::Wait(_)));
}

#[test]
fn a_terminated_or_restarted_holder_is_not_waited_for() {
    let early = View { unchanged: Duration::from_secs(1), holder_terminated: true, ..view("orders-1") };
    assert_eq!(decide(&early), Action::Poll);
    let mut me = holder("orders-0");
    me.nonce = "second".into();
    let again = View { me, server: Server::Down, unchanged: Duration::ZERO, ..view("orders-0") };
    let Action::Take(taken) = decide(&again) else { panic!("{:?}", decide(&again)) };
    // It goes on where it was: no promotion, the same timeline.
    assert_eq!((taken.timeline, taken.term), (2, 5));
}

#[test]
fn a_pods_namesake_deleted_by_force_is_waited_for() {
    let mut me = holder("orders-0");
    me.uid = "other".into();
    let soon = View { me, server: Server::Down, unchanged: Duration::from_secs(1), ..view("orders-0") };
    assert!(matches!(decide(&soon), Action::Wait(_)));
    assert_eq!(decide(&View { unchanged: Duration::from_secs(7), ..soon }), Action::Poll);
}

#[test]
fn an_empty_volume_never_leads() {
    let empty = View { data: Data::Empty, server: Server::Down, ..view("orders-0") };
    assert!(matches!(decide(&View { lease: None, polled: true, ..empty.clone() }), Action::Wait(_)));
    let held = Record { holder: Some(holder("orders-0")), ..record() };
    assert_eq!(decide(&View { lease: Some(held), ..empty.clone() }), Action::Release);
    let new = View { lease: None, system_identifier: String::new(), ..empty };
    assert_eq!(decide(&new), Action::Poll);
    let peer = View { polled: true, votes: vec![vote_of("orders-2", 5)], ..new.clone() };
    assert!(matches!(decide(&peer), Action::Wait(_)));
    let Action::Take(taken) = decide(&View { polled: true, ..new.clone() }) else { panic!() };
    assert_eq!(taken.system_identifier, "");
    assert_eq!(decide(&View { lease: Some(taken), ..new }), Action::Initialise);
}

#[test]
fn foreign_data_is_left_untouched() {
    for data in [
        Data::Present { data_set: "d2".into(), system_identifier: "77".into(), unled: false },
        Data::Present { data_set: "d1".into(), system_identifier: "78".into(), unled: false },
    ] {
        assert!(matches!(decide(&View { data, ..view("orders-0") }), Action::Refuse(_)));
    }
}

#[test]
fn a_lease_of_another_data_set_is_void_but_its_term_counts() {
    let old = Record { data_set: "d0".into(), system_identifier: "66".into(), ..record() };
    let restored = View {
        lease: Some(old),
        unchanged: Duration::ZERO,
        polled: true,
        server: Server::Standby { timeline: 3, flushed: Lsn(7), streaming: false },
        ..view("orders-0")
    };
    let Action::Take(taken) = decide(&restored) else { panic!("{:?}", decide(&restored)) };
    assert_eq!((taken.term, taken.timeline), (5, 4));
}

#[test]
fn a_lost_lease_is_no_licence_save_for_data_that_nobody_led() {
    let lost = View { lease: None, polled: true, ..view("orders-0") };
    let soon =
        View { votes: vec![vote_of("orders-1", 1)], unchanged: Duration::from_secs(1), ..lost.clone() };
    assert!(matches!(decide(&soon), Action::Wait(_)));
    assert!(matches!(decide(&lost), Action::Wait(_)));
    assert!(matches!(decide(&View { votes: vec![vote_of("orders-1", 1)], ..lost.clone() }), Action::Take(_)));
    let data = Data::Present { data_set: "d1".into(), system_identifier: "77".into(), unled: true };
    assert!(matches!(decide(&View { data, ..lost }), Action::Take(_)));
}

#[test]
fn a_primary_that_had_relaxed_is_waited_for() {
    let relaxed = Record { synchronous: vec![], confirmations: 0, ..record() };
    let view = View {
        lease: Some(relaxed),
        durability: DurabilityMode::Preferred,
        polled: true,
        votes: vec![vote_of("orders-2", 1)],
        ..view("orders-1")
    };
    assert!(matches!(decide(&view), Action::Wait(_)));
    assert!(matches!(decide(&View { durability: DurabilityMode::Asynchronous, ..view }), Action::Take(_)));
}

#[test]
fn the_synchronous_set_grows_and_required_never_empties_it() {
    let wanted: Vec<String> = (1..3).map(|n| format!("orders-{n}")).collect();
    let none = Record { synchronous: vec![], confirmations: 0, ..record() };
    use DurabilityMode::{Preferred, Required};
    assert_eq!(next_synchronous(&none, Required, 1, &wanted, &[]), None);
    assert_eq!(next_synchronous(&none, Required, 1, &wanted, &wanted[..1]), Some((wanted[..1].to_vec(), 1)));
    assert_eq!(next_synchronous(&record(), Required, 1, &wanted, &[]), None);
    assert_eq!(next_synchronous(&record(), Preferred, 1, &wanted, &[]), Some((vec![], 0)));
    // Scaled down: a member that is no longer wanted leaves.
    assert_eq!(
        next_synchronous(&record(), Required, 1, &wanted[..1], &wanted),
        Some((wanted[..1].to_vec(), 1))
    );
}

#[test]
fn a_promise_binds_until_the_lease_that_it_was_about_has_changed() {
    let call = call();
    let promise = answer(&view("orders-1"), &call).unwrap();
    assert!(promise.binds(&record(), 40) && promise.binds(&record(), 39));
    assert!(!promise.binds(&record(), 41), "the candidate replaces version 40 or none");
    assert!(!promise.binds(&Record { term: 5, ..record() }, 40));
    // A call that arrives late takes nothing back.
    let older = Call { version: 30, term: 6, ..call.clone() };
    assert!(promise.and(&older).binds(&record(), 40));
    let after = View { promise: Promise { term: 6, version: 40 }, ..view("orders-1") };
    assert!(answer(&after, &call).is_err(), "an earlier term than it has promised");
    assert!(answer(&View { version: 41, ..view("orders-1") }, &call).is_err(), "it could not be taken");
    let streams = View {
        server: Server::Standby { timeline: 2, flushed: Lsn(500), streaming: true },
        unchanged: Duration::from_secs(1),
        ..view("orders-1")
    };
    assert!(answer(&streams, &call).is_err());
    assert!(answer(&View { holder_terminated: true, ..streams }, &call).is_ok());
    assert!(answer(&view("orders-0"), &call).is_err(), "the holder gives nothing away");
    let refused = vote(&after, &call, false);
    assert_eq!((refused.timeline, refused.term), (0, 6), "it says what must be exceeded");
    assert_eq!(vote(&view("orders-1"), &call, true).flushed, Lsn(500));
}

#[test]
fn a_timeline_that_no_promise_knows_was_lost_before_anything_was_acknowledged_on_it() {
    // orders-0 took over on timeline 3 and was lost for good before anybody followed.
    let lost = Record { timeline: 3, ..record() };
    let alone = View { lease: Some(lost.clone()), polled: true, ..view("orders-1") };
    assert!(matches!(decide(&alone), Action::Wait(_)));
    let View { votes, .. } = View { votes: vec![vote_of("orders-2", 500)], ..alone.clone() };
    let Action::Take(taken) = decide(&View { votes, ..alone.clone() }) else { panic!() };
    assert_eq!(taken.timeline, 4, "3 may be somewhere, with other content");
    // One that has seen it goes first.
    let knows = Vote { timeline: 3, flushed: Lsn(400), ..vote_of("orders-2", 0) };
    assert!(matches!(decide(&View { votes: vec![knows], ..alone }), Action::Wait(_)));
    let relaxed = Record { synchronous: vec![], confirmations: 0, ..lost };
    let mode = DurabilityMode::Asynchronous;
    let alone = View { lease: Some(relaxed), polled: true, durability: mode, ..view("orders-1") };
    assert!(matches!(decide(&alone), Action::Wait(_)));
}

#[test]
fn of_equals_the_second_does_not_wait_for_ever() {
    let second = View { polled: true, votes: vec![vote_of("orders-1", 500)], ..view("orders-2") };
    assert!(matches!(decide(&second), Action::Wait(_)));
    assert!(matches!(decide(&View { unchanged: Duration::from_secs(12), ..second }), Action::Take(_)));
}

#[test]
fn a_hand_over_is_for_the_successor_that_has_everything_and_for_a_while() {
    let hand_over = Some(HandOver { to: "orders-2".into(), lsn: Lsn(499), ..HandOver::default() });
    let free = Record { holder: None, hand_over, ..record() };
    let soon = |pod: &str| View { lease: Some(free.clone()), unchanged: Duration::from_secs(1), ..view(pod) };
    let Action::Take(taken) = decide(&soon("orders-2")) else { panic!("{:?}", decide(&soon("orders-2"))) };
    assert_eq!((taken.term, taken.timeline, taken.hand_over), (5, 3, None));
    for other in ["orders-0", "orders-1"] {
        assert!(matches!(decide(&soon(other)), Action::Wait(_)), "{other}");
    }
    let behind = Server::Standby { timeline: 2, flushed: Lsn(499), streaming: false };
    assert!(matches!(decide(&View { server: behind, ..soon("orders-2") }), Action::Wait(_)));
    // It did not come: the old primary opens again, and anybody else asks as ever.
    let late = |pod: &str| View { unchanged: Duration::from_secs(4), ..soon(pod) };
    let Action::Take(again) = decide(&late("orders-0")) else { panic!() };
    assert_eq!((again.timeline, again.hand_over), (2, None));
    let asked = Some(Switchover { asked: "any@1".into(), refused: String::new() });
    let reopened = View { lease: Some(Record { switchover: asked, ..free.clone() }), ..late("orders-0") };
    let Action::Take(again) = decide(&reopened) else { panic!() };
    assert_eq!(again.switchover.unwrap().refused, "orders-2 did not take over in time");
    assert_eq!(decide(&late("orders-1")), Action::Poll);
}

#[test]
fn the_set_changes_in_the_order_that_a_takeover_can_rely_on() {
    let set = |members: &[&str], confirmations| Synchronous {
        members: members.iter().map(|m| m.to_string()).collect(),
        confirmations,
    };
    // The steps from one set to another, `arrived` given when asked for.
    let walk = |from: &Synchronous, to: &Synchronous| {
        let (mut recorded, mut obeyed, mut arrived) = (from.clone(), from.clone(), false);
        let mut steps = Vec::new();
        for _ in 0..6 {
            let step = change(&recorded, &obeyed, to, arrived);
            match &step {
                Change::Record(next) => recorded = next.clone(),
                Change::Obey => obeyed = to.clone(),
                Change::Arrive => arrived = true,
                Change::Done => return steps,
            }
            assert!(recorded.covers(&obeyed), "{steps:?}");
            steps.push(step);
        }
        panic!("{steps:?}")
    };
    use Change::{Arrive, Obey, Record};
    let (none, one, two) = (set(&[], 0), set(&["b"], 1), set(&["b", "c"], 1));
    // The first set of all: until its commits have arrived the holder has the only word.
    assert_eq!(walk(&none, &two), vec![Obey, Arrive, Record(two.clone())]);
    // Another member: the Lease first. One less: postgres first.
    assert_eq!(walk(&one, &two), vec![Record(two.clone()), Obey]);
    assert_eq!(walk(&two, &one), vec![Obey, Arrive, Record(one.clone())]);
    let strict = set(&["b", "c"], 2);
    assert_eq!(walk(&two, &strict), vec![Obey, Arrive, Record(strict.clone())]);
    assert_eq!(walk(&strict, &two), vec![Record(two.clone()), Obey]);
    assert_eq!(walk(&two, &none), vec![Record(set(&["b", "c"], 0)), Obey, Arrive, Record(none)]);
    let other = set(&["c", "d"], 1);
    assert_eq!(walk(&two, &other), vec![Record(set(&["b", "c", "d"], 1)), Obey, Arrive, Record(other)]);
}

#[test]
fn a_switchover_goes_to_who_streams_and_confirms() {
    let streaming: Vec<String> = ["orders-1", "orders-2", "orders-3"].map(String::from).into();
    let to = |asked: &str, streaming: &[String]| successor(asked, "orders-0", &record(), streaming);
    assert_eq!(to("any@3", &streaming[1..]), Ok(Some("orders-2".into())));
    assert_eq!(to("orders-2", &streaming), Ok(Some("orders-2".into())));
    assert_eq!(to("orders-0@again", &streaming), Ok(None));
    assert_eq!(
        to("orders-3", &streaming).unwrap_err(),
        "orders-3 streams from orders-0, but is not in the synchronous set"
    );
    assert_eq!(to("orders-9", &streaming).unwrap_err(), "orders-9 does not stream from orders-0");
    assert!(to("any", &streaming[2..]).unwrap_err().contains("no standby"));
}

fn stay() -> Stay {
    Stay { holder: holder("orders-0"), term: 4, data_set: "d1".into() }
}

#[test]
fn who_agreed_that_the_holder_stays_follows_it_for_one_more_ttl_and_promises_nothing() {
    let asked = view("orders-1");
    assert_eq!(agree(&asked, &stay()), Ok(()));
    assert_eq!(decide(&asked), Action::Poll);
    let call = call();
    assert!(answer(&asked, &call).is_ok());
    let agreed = View { consent: Some(Duration::from_secs(5)), ..asked.clone() };
    assert_eq!(decide(&agreed), Action::Follow("orders-0".into()));
    assert!(answer(&agreed, &call).is_err(), "it does not even receive, and still its word stands");
    // Its end was seen: it cannot be led on by anybody.
    assert!(answer(&View { holder_terminated: true, ..agreed.clone() }, &call).is_ok());
    let later = View { consent: Some(Duration::from_secs(6)), ..agreed };
    assert_eq!(decide(&later), Action::Poll);
    assert!(answer(&later, &call).is_ok());
}

#[test]
fn nobody_agrees_to_what_a_candidate_may_end_at_any_moment() {
    let view = view("orders-1");
    let promised = View { promise: Promise { term: 5, version: 40 }, ..view.clone() };
    assert!(agree(&promised, &stay()).is_err());
    // The candidate wanted to replace an earlier version: it has failed.
    let failed = View { promise: Promise { term: 5, version: 39 }, ..view.clone() };
    assert!(agree(&failed, &stay()).is_ok());
    assert!(agree(&view, &Stay { term: 3, ..stay() }).is_err());
    assert!(agree(&view, &Stay { holder: holder("orders-2"), ..stay() }).is_err());
    let other = Holder { nonce: "earlier".into(), ..holder("orders-0") };
    assert!(agree(&view, &Stay { holder: other, ..stay() }).is_err());
    assert!(agree(&View { holder_terminated: true, ..view.clone() }, &stay()).is_err());
    assert!(agree(&View { lease: None, ..view }, &stay()).is_err());
}

#[test]
fn consent_is_asked_of_all_whom_the_lease_names_and_of_nobody_where_that_proves_nothing() {
    let all = record();
    assert_eq!(whose_consent(&all), Some(vec!["orders-1".into(), "orders-2".into()]));
    assert_eq!(whose_consent(&Record { members: vec!["orders-0".into()], ..record() }), None);
    assert_eq!(whose_consent(&Record { members: vec![], ..record() }), None, "an agent of before wrote it");
    assert_eq!(whose_consent(&Record { members: vec!["orders-1".into()], ..record() }), None);
    assert_eq!(whose_consent(&Record { holder: None, ..record() }), None);
}

#[test]
fn an_instance_that_the_lease_does_not_name_never_takes_it() {
    let mode = DurabilityMode::Asynchronous;
    let record = Record { synchronous: vec![], confirmations: 0, ..record() };
    let polled = View { lease: Some(record.clone()), durability: mode, polled: true, ..view("orders-3") };
    let Action::Wait(why) = decide(&polled) else { panic!("{:?}", decide(&polled)) };
    assert!(why.contains("admit"), "{why}");
    let mut members = record.members.clone();
    members.push("orders-3".into());
    let named = View { lease: Some(Record { members, ..record }), ..polled };
    assert!(matches!(decide(&named), Action::Take(_)));
}

#[test]
fn the_namesake_of_a_holder_asks_before_it_takes_over() {
    let me = Holder { uid: "uid-new".into(), nonce: "n2".into(), ..holder("orders-0") };
    let successor = View { me, server: Server::Down, ..view("orders-0") };
    assert_eq!(decide(&successor), Action::Poll);
    let asked = View { polled: true, ..successor.clone() };
    assert!(matches!(decide(&asked), Action::Wait(_)));
    let silent = Vote { timeline: 0, flushed: Lsn(0), promised: false, ..vote_of("orders-1", 1) };
    assert!(matches!(decide(&View { votes: vec![silent.clone()], ..asked.clone() }), Action::Wait(_)));
    assert!(matches!(
        decide(&View { votes: vec![vote_of("orders-1", 1)], ..asked.clone() }),
        Action::Take(_)
    ));
    // One whose volume is being filled has promised as well as any.
    let empty = Vote { data_set: String::new(), system_identifier: String::new(), promised: true, ..silent };
    assert!(matches!(decide(&View { votes: vec![empty], ..asked }), Action::Take(_)));
    assert!(matches!(decide(&View { holder_terminated: true, ..successor.clone() }), Action::Take(_)));
    // Alone nobody can have agreed to anything.
    let alone = Record { members: vec!["orders-0".into()], ..record() };
    assert!(matches!(decide(&View { lease: Some(alone), ..successor }), Action::Take(_)));
}

#[test]
fn nobody_promises_right_after_the_lease_is_gone() {
    let call = Call { version: 0, lease_uid: String::new(), ..call() };
    let gone = View { lease: None, version: 0, unchanged: Duration::from_secs(5), ..view("orders-1") };
    assert!(answer(&gone, &call).is_err(), "it may have agreed that the holder stays");
    assert!(answer(&View { unchanged: Duration::from_secs(6), ..gone.clone() }, &call).is_ok());
    // Before there ever was data there is nobody to wait for.
    assert!(answer(&View { system_identifier: String::new(), ..gone }, &call).is_ok());
}

#[test]
fn one_that_is_to_go_is_named_while_a_commit_may_be_on_it_alone() {
    let wanted: Vec<String> = (0..2).map(|n| format!("orders-{n}")).collect();
    assert_eq!(admitted("orders-0", &wanted, &record().synchronous), record().members);
    assert_eq!(admitted("orders-0", &wanted, &["orders-1".into()]), wanted);
}
