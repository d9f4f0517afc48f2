//! What can happen, and what it does.

use crate::{
    checked::Checked,
    eyes::{self, TTL},
    mistakes::Mistake,
    world::{Entry, Id, Members, Poll, Server, World},
};
use holdfast_core::crd::database::DurabilityMode;
use holdfast_postgresql::failover::{
    Action as Decision, Change, Promise, Server as Seen, Stay, View, agree, answer, change, decide,
    fence_after, whose_consent,
};
use std::time::Duration;

/// Ticks of a clock in one TTL. Two clocks may differ by five in a hundred each way, which half a second can tell at six.
pub const TICKS: u8 = 12;

/// Ticks of the slowest clock until a holder that hears nothing has killed everything, counted from when it sent its last request.
fn fenced_after() -> u8 {
    let tick = TTL / u32::from(TICKS);
    (fence_after(TTL).div_duration_f64(tick) / 0.95).ceil() as u8
}

/// Ticks of the fastest clock until others count the Lease as run out.
fn expired_after() -> u8 {
    (f64::from(TICKS) / 1.05).floor() as u8
}

/// One thing that happens.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Step {
    /// A member's watch brings the current Lease.
    See(Id),
    /// A member looks, decides and acts.
    Turn { id: Id, expired: bool, terminated: bool },
    /// A member answers a call for promises.
    Answer { from: Id, to: Id, expired: bool },
    /// A candidate decides on the answers that it has.
    Count(Id),
    /// The API server carries out a write; and its answer arrives, or is lost.
    Land { id: Id, heard: bool },
    /// A write is lost.
    Lose(Id),
    /// The holder renews the Lease.
    Renew(Id),
    /// The holder does not reach the API server, and asks whether it may stay.
    Ask(Id),
    /// A member agrees to that.
    Agree { from: Id, to: Id },
    /// The holder hears what those have said whom it asked.
    Hear(Id),
    /// The holder's time is up, or its server is not well: everything is killed.
    Fence(Id),
    /// The container ends and begins anew.
    Restart(Id),
    /// The pod is lost, with its node.
    Die(Id),
    /// The pod's volume is lost: it begins anew with an empty one.
    Wipe(Id),
    /// A standby receives.
    Stream(Id),
    /// A client's commit is written on this server.
    Write(Id),
    /// A commit is acknowledged to the client.
    Acknowledge(Id),
    /// The primary goes a step towards this synchronous set.
    Set { id: Id, members: Members, confirmations: u8 },
    /// The primary ends in good order and names a successor, whose connection carries the last of the WAL or has just broken.
    HandOver { id: Id, to: Id, connected: bool },
    /// Half a second passes.
    Tick,
}

/// What may happen in a world.
pub fn possible(checked: &Checked, world: &World, steps: &mut Vec<Step>) {
    if world.wrong.is_some() {
        return;
    }
    let all = || 0..world.members.len() as Id;
    let faults = world.faults < checked.faults;
    for id in all() {
        let member = &world.members[usize::from(id)];
        if member.write.is_some() {
            steps.extend([Step::Land { id, heard: true }, Step::Land { id, heard: false }, Step::Lose(id)]);
        }
        // A server goes on without its agent; whatever needs the pod does not.
        if !member.up {
            continue;
        }
        if member.server == Server::Primary {
            if world.written < checked.commits {
                steps.push(Step::Write(id));
            }
            steps.push(Step::Acknowledge(id));
        }
        if let Server::Standby(Some(_)) = member.server {
            steps.push(Step::Stream(id));
        }
        if member.seen != world.version() {
            steps.push(Step::See(id));
        }
        if faults {
            steps.push(Step::Restart(id));
            if checked.losses {
                steps.extend([Step::Die(id), Step::Wipe(id)]);
            }
        }
        if member.holds.is_some() {
            // With clocks and without faults it comes in its time.
            if checked.faults > 0 || !checked.clocks {
                steps.push(Step::Fence(id));
            }
            if checked.renews {
                steps.push(Step::Renew(id));
            }
            if checked.stays {
                steps.extend([Step::Ask(id), Step::Hear(id)]);
                let others = all().filter(|from| *from != id && member.asks.is_some());
                steps.extend(others.map(|from| Step::Agree { from, to: id }));
            }
            let open = member.server == Server::Primary && member.write.is_none();
            if open && checked.sets {
                let others = ((1 << world.members.len()) - 1) & !(1 << id);
                for members in (1..=others).filter(|m: &Members| m & !others == 0) {
                    let most = members.count_ones().min(checked.confirmations.into()) as u8;
                    steps.extend((1..=most).map(|confirmations| Step::Set { id, members, confirmations }));
                }
            }
            if open && checked.sets && checked.mode == DurabilityMode::Preferred {
                steps.push(Step::Set { id, members: 0, confirmations: 0 });
            }
            if open && checked.hand_overs {
                let ways = |to| [true, false].map(|connected| Step::HandOver { id, to, connected });
                steps.extend(all().filter(|to| *to != id).flat_map(ways));
            }
        }
        match &member.poll {
            Some(_) => {
                steps.push(Step::Count(id));
                for from in all().filter(|from| *from != id) {
                    for expired in checked.expiries(world, from) {
                        steps.push(Step::Answer { from, to: id, expired });
                    }
                }
            }
            None if member.seen > 0 && member.write.is_none() => {
                for expired in checked.expiries(world, id) {
                    let terminated = checked.clocks && !expired && terminated(checked, world, id);
                    steps.push(Step::Turn { id, expired, terminated });
                }
            }
            None => {}
        }
    }
    if checked.clocks {
        steps.push(Step::Tick);
    }
}

impl Checked {
    /// What a member may think of how old the Lease is. Without clocks: anything, at any time.
    fn expiries(&self, world: &World, id: Id) -> Vec<bool> {
        let member = &world.members[usize::from(id)];
        let age = consent(world, id).map_or(member.age, |consent| consent.min(member.age));
        match self.clocks {
            false => vec![false, true],
            true => vec![age >= expired_after()],
        }
    }
}

/// Own time since a member agreed that the holder stays whom its Lease names.
fn consent(world: &World, id: Id) -> Option<u8> {
    let member = &world.members[usize::from(id)];
    let (to, age) = member.agreed?;
    let entry = world.entry(member.seen)?;
    (entry.holder == Some((to.0, to.1)) && entry.term == to.2).then_some(age)
}

/// Whether the API server says that the holder's container has ended.
fn terminated(checked: &Checked, world: &World, id: Id) -> bool {
    let Some(entry) = world.entry(world.members[usize::from(id)].seen) else { return false };
    let Some((holder, boot)) = entry.holder else { return false };
    let now = &world.members[usize::from(holder)];
    match checked.mistake {
        Some(Mistake::LateTerminated) => now.boot > 1,
        // A lost pod's end is not confirmed by anybody.
        _ => now.up && now.boot > boot,
    }
}

fn unchanged(expired: bool) -> Duration {
    if expired { TTL * 3 } else { Duration::ZERO }
}

/// The world after a step; `None`: nothing has changed.
pub fn after(checked: &Checked, world: &World, step: &Step) -> Option<World> {
    let mut next = world.clone();
    let changed = match *step {
        Step::See(id) => {
            let version = world.version();
            let term = world.entry(version).map_or(0, |e| e.term);
            let holder = world.entry(version).and_then(|e| e.holder);
            let member = next.at(id);
            // What it agreed to before it began anew it does not know.
            if let Some((holder, boot)) = holder.filter(|_| checked.stays && member.seen == 0) {
                member.agreed = Some(((holder, boot, term), 0));
            }
            (member.seen, member.age) = (version, 0);
            // What an empty volume has promised before it was lost nobody knows: it follows only a Lease that is newer than that.
            if !member.data
                && member.promise == (0, 0)
                && checked.mistake != Some(Mistake::EmptyVolumeFollows)
            {
                member.promise = (term + 1, version);
            }
            true
        }
        Step::Turn { id, expired, terminated } => turn(checked, &mut next, id, expired, terminated),
        Step::Answer { from, to, expired } => answers(checked, &mut next, from, to, expired),
        Step::Count(id) => count(checked, &mut next, id),
        Step::Land { id, heard } => land(checked, &mut next, id, heard),
        Step::Lose(id) => next.at(id).write.take().is_some(),
        Step::Renew(id) => renew(&mut next, id),
        Step::Ask(id) => {
            next.at(id).asks = Some((0, 0));
            true
        }
        Step::Agree { from, to } => agrees(checked, &mut next, from, to),
        Step::Hear(id) => hear(checked, &mut next, id),
        Step::Fence(id) => {
            next.at(id).fenced();
            true
        }
        Step::Restart(id) => {
            next.faults += 1;
            restart(checked, &mut next, id);
            true
        }
        Step::Die(id) => {
            next.faults += 1;
            next.at(id).fenced();
            next.at(id).up = false;
            true
        }
        Step::Wipe(id) => {
            next.faults += 1;
            restart(checked, &mut next, id);
            let member = next.at(id);
            member.wal.clear();
            (member.data, member.promise) = (false, (0, 0));
            true
        }
        Step::Stream(id) => stream(&mut next, id),
        Step::Write(id) => {
            let commit = next.written;
            next.written += 1;
            next.at(id).wal.push(commit);
            true
        }
        Step::Acknowledge(id) => acknowledge(&mut next, id),
        Step::Set { id, members, confirmations } => set(checked, &mut next, id, (members, confirmations)),
        Step::HandOver { id, to, connected } => hand_over(&mut next, id, to, connected),
        Step::Tick => tick(checked, &mut next),
    };
    next.judge();
    (changed && next != *world).then(|| next.canonical())
}

fn restart(checked: &Checked, world: &mut World, id: Id) {
    let member = world.at(id);
    member.fenced();
    member.boot += 1;
    (member.seen, member.age, member.agreed) = (0, 0, None);
    if checked.mistake == Some(Mistake::PromiseForgotten) {
        member.promise = (0, 0);
    }
}

fn look(checked: &Checked, world: &World, id: Id, expired: bool, terminated: bool) -> View {
    let stands = |age| if age >= expired_after() { TTL * 3 } else { Duration::ZERO };
    let consent = consent(world, id).map(stands);
    eyes::view(checked, world, id, unchanged(expired), consent, terminated)
}

/// A member hears that the holder wants to stay, and agrees or not; what the holder makes of it.
fn agrees(checked: &Checked, world: &mut World, from: Id, to: Id) -> bool {
    let Some((entry, _)) = world.members[usize::from(to)].holds.clone() else { return false };
    let voter = &world.members[usize::from(from)];
    let Some((agreed, asked)) = world.members[usize::from(to)].asks else { return false };
    if !voter.up || voter.seen == 0 || agreed & (1 << from) != 0 {
        return false;
    }
    let view = look(checked, world, from, false, terminated(checked, world, from));
    let record = eyes::record(&entry);
    let Some(holder) = record.holder.clone() else { return false };
    let stay = Stay { holder, term: record.term, data_set: record.data_set.clone() };
    if agree(&view, &stay).is_err() {
        return false;
    }
    let Some((holder, boot)) = entry.holder else { return false };
    world.at(from).agreed = Some(((holder, boot, entry.term), 0));
    world.at(to).asks = Some((agreed | 1 << from, asked));
    true
}

/// The holder has heard whom it asked.
fn hear(checked: &Checked, world: &mut World, id: Id) -> bool {
    let member = world.at(id);
    let (Some((entry, _)), Some((agreed, asked))) = (member.holds.clone(), member.asks) else { return false };
    let needed = whose_consent(&eyes::record(&entry)).unwrap_or_default();
    let missing = needed.iter().filter(|pod| agreed & (1 << eyes::id(pod)) == 0).count();
    let enough = match checked.mistake {
        Some(Mistake::StayWithSome) => missing < needed.len(),
        _ => missing == 0,
    };
    if !enough {
        return false;
    }
    let since = if checked.mistake == Some(Mistake::StayFromAnswer) { 0 } else { asked };
    member.sent = member.sent.min(since);
    member.asks = None;
    true
}

fn turn(checked: &Checked, world: &mut World, id: Id, expired: bool, terminated: bool) -> bool {
    let view = look(checked, world, id, expired, terminated);
    let decision = decide(&view);
    act(checked, world, id, &view, decision)
}

fn act(checked: &Checked, world: &mut World, id: Id, view: &View, decision: Decision) -> bool {
    let current = world.version();
    let member = world.at(id);
    match decision {
        Decision::Wait(_) | Decision::Refuse(_) | Decision::Initialise => false,
        Decision::Fence => {
            member.fenced();
            true
        }
        Decision::Take(record) => {
            let over = member.seen;
            member.send(eyes::entry(&record), over);
            true
        }
        Decision::Release => {
            let Some(record) = &view.lease else { return false };
            let over = member.seen;
            member.send(Entry { holder: None, ..eyes::entry(record) }, over);
            member.holds = None;
            true
        }
        Decision::Lead => lead(checked, world, id),
        Decision::Follow(holder) => {
            member.server = Server::Standby(Some(eyes::id(&holder)));
            true
        }
        Decision::StandAlone => {
            member.server = Server::Standby(None);
            true
        }
        Decision::Poll => {
            // Read from the API server itself: it is the one that was seen, or there is no call.
            if member.seen != current {
                return false;
            }
            let (term, version) = (view.next_term() as u8, member.seen);
            if term > checked.terms {
                return false;
            }
            if let Server::Standby(_) = member.server {
                member.server = Server::Standby(None);
            }
            let poll = Poll { term, version, votes: Vec::new() };
            let promise = view.promise.and(&eyes::call(id, &poll));
            member.promise = (promise.term as u8, promise.version as u8);
            let votes = vec![None; world.members.len()];
            world.at(id).poll = Some(Poll { votes, ..poll });
            true
        }
    }
}

/// The holder becomes primary, or goes on.
fn lead(checked: &Checked, world: &mut World, id: Id) -> bool {
    let version = world.version();
    let Some(entry) = world.entry(world.members[usize::from(id)].seen).cloned() else { return false };
    let member = world.at(id);
    let Some((held, _)) = member.holds.clone() else {
        // The answer to its write was lost: it writes the same again.
        let over = member.seen;
        member.send(entry, over);
        return true;
    };
    if member.server == Server::Primary || version == 0 {
        return false;
    }
    if member.timeline != held.timeline {
        let timeline = match checked.mistake {
            Some(Mistake::TimelineNotAllotted) => member.timeline + 1,
            _ => held.timeline,
        };
        member.timeline = timeline;
        if world.timelines.iter().any(|(t, term)| *t == timeline && *term != held.term) {
            world.wrong = Some("one number for two timelines");
        }
        if !world.timelines.contains(&(timeline, held.term)) {
            world.timelines.push((timeline, held.term));
        }
    }
    let member = world.at(id);
    member.server = Server::Primary;
    member.obeys = (held.set, held.confirmations);
    member.confirmed = vec![0; member.confirmed.len()];
    true
}

fn answers(checked: &Checked, world: &mut World, from: Id, to: Id, expired: bool) -> bool {
    let Some(poll) = world.members[usize::from(to)].poll.clone() else { return false };
    let voter = &world.members[usize::from(from)];
    if !voter.up || voter.seen == 0 || poll.votes[usize::from(from)].is_some() || !voter.data {
        return false;
    }
    let mut view = look(checked, world, from, expired, false);
    if checked.mistake == Some(Mistake::AnswerWhileStreaming)
        && let Seen::Standby { streaming, .. } = &mut view.server
    {
        *streaming = false;
    }
    let Ok(Promise { term, version }) = answer(&view, &eyes::call(to, &poll)) else { return false };
    let voter = world.at(from);
    voter.promise = (term as u8, version as u8);
    // The server's end is known once its own WAL is replayed; a member without a server says nothing of it.
    let Server::Standby(_) = voter.server else { return true };
    if checked.mistake != Some(Mistake::AnswerWhileStreaming) {
        voter.server = Server::Standby(None);
    }
    let vote = (voter.timeline, voter.wal.len() as u8);
    if let Some(poll) = &mut world.at(to).poll {
        poll.votes[usize::from(from)] = Some(vote);
    }
    true
}

fn count(checked: &Checked, world: &mut World, id: Id) -> bool {
    let Some(poll) = world.at(id).poll.take() else { return false };
    // By now more time has passed: of equals the second may go, too.
    let mut view = look(checked, world, id, true, false);
    view.votes = eyes::votes(&poll);
    view.polled = true;
    // The call was for this version, and so is what it may write.
    if view.version != u64::from(poll.version) {
        return true;
    }
    view.promise.term = u64::from(poll.term) - 1;
    if let decision @ Decision::Take(_) = decide(&view) {
        act(checked, world, id, &view, decision);
    }
    true
}

fn land(checked: &Checked, world: &mut World, id: Id, heard: bool) -> bool {
    let current = world.version();
    let Some(write) = world.at(id).write.take() else { return false };
    if write.over != current && checked.mistake != Some(Mistake::NoPrecondition) {
        return true;
    }
    let version = current + 1;
    world.lease.push((version, write.entry.clone()));
    let member = world.at(id);
    if heard && member.up && member.boot == write.boot {
        member.seen = version;
        member.age = 0;
        if write.entry.holder == Some((id, write.boot)) {
            member.holds = Some((write.entry, version));
            member.sent = write.age;
        }
    }
    true
}

fn renew(world: &mut World, id: Id) -> bool {
    let current = world.version();
    let Some((entry, version)) = world.members[usize::from(id)].holds.clone() else { return false };
    // The keeper goes on from a version that still is its own: an answer that was lost, or an edit by hand.
    let ours = world.lease.last().is_some_and(|(_, e)| e.holder == entry.holder && e.term == entry.term);
    if version != current && !ours {
        return false;
    }
    world.lease.push((current + 1, entry.clone()));
    let member = world.at(id);
    member.holds = Some((entry, current + 1));
    (member.seen, member.age, member.sent) = (current + 1, 0, 0);
    true
}

fn stream(world: &mut World, id: Id) -> bool {
    let standby = &world.members[usize::from(id)];
    let Server::Standby(Some(upstream)) = standby.server else { return false };
    let primary = world.members[usize::from(upstream)].clone();
    if !primary.up || primary.server != Server::Primary || upstream == id {
        return false;
    }
    let standby = world.at(id);
    if standby.data && primary.wal.starts_with(&standby.wal) && standby.timeline <= primary.timeline {
        if let Some(commit) = primary.wal.get(standby.wal.len()) {
            standby.wal.push(*commit);
        }
    } else if standby.timeline <= primary.timeline {
        // Parted, or empty: rewound or copied.
        standby.wal = primary.wal;
        standby.data = true;
    } else {
        return false;
    }
    standby.timeline = primary.timeline;
    let length = standby.wal.len() as u8;
    world.at(upstream).confirmed[usize::from(id)] = length;
    true
}

fn acknowledge(world: &mut World, id: Id) -> bool {
    let member = &world.members[usize::from(id)];
    let (set, needed) = member.obeys;
    let mut confirmed: Vec<u8> =
        (0..world.members.len()).filter(|i| set & (1 << i) != 0).map(|i| member.confirmed[i]).collect();
    confirmed.sort_unstable_by(|a, b| b.cmp(a));
    let length = match needed {
        0 => member.wal.len(),
        n => usize::from(confirmed.get(usize::from(n) - 1).copied().unwrap_or(0)),
    };
    let wal = member.wal[..length.min(member.wal.len())].to_vec();
    let shorter = wal.len().min(world.acknowledged.len());
    if wal[..shorter] != world.acknowledged[..shorter] {
        world.wrong = Some("two histories were acknowledged");
        return true;
    }
    if wal.len() <= world.acknowledged.len() {
        return false;
    }
    world.acknowledged = wal;
    true
}

fn set(checked: &Checked, world: &mut World, id: Id, goal: (Members, u8)) -> bool {
    let member = world.at(id);
    let Some((entry, version)) = member.holds.clone() else { return false };
    let recorded = (entry.set, entry.confirmations);
    let end = member.wal.len() as u8;
    let there = (0..member.confirmed.len()).filter(|i| goal.0 & (1 << i) != 0 && member.confirmed[*i] >= end);
    let arrived = there.count() >= usize::from(goal.1);
    let [on_record, obeyed, wanted] = [recorded, member.obeys, goal].map(eyes::synchronous);
    let step = match checked.mistake {
        Some(Mistake::SetInWrongOrder) if recorded != goal => Change::Record(wanted),
        Some(Mistake::SetInWrongOrder) if member.obeys != goal => Change::Obey,
        _ => change(&on_record, &obeyed, &wanted, arrived),
    };
    match step {
        Change::Record(next) => {
            let (set, confirmations) =
                (eyes::bits(&next.members), u8::try_from(next.confirmations).unwrap_or(0));
            member.send(Entry { set, confirmations, ..entry }, version);
            true
        }
        Change::Obey => {
            member.obeys = goal;
            true
        }
        Change::Arrive | Change::Done => false,
    }
}

fn hand_over(world: &mut World, id: Id, to: Id, connected: bool) -> bool {
    let member = world.at(id);
    let Some((entry, version)) = member.holds.clone() else { return false };
    if member.server != Server::Primary {
        return false;
    }
    // The shutdown checkpoint.
    let past = member.wal.len() as u8;
    member.wal.push(u8::MAX);
    let wal = member.wal.clone();
    member.server = Server::Down;
    member.send(Entry { holder: None, hand_over: Some((to, past)), ..entry }, version);
    member.holds = None;
    let successor = world.at(to);
    let streams = connected && successor.server == Server::Standby(Some(id));
    if streams && successor.up && wal.starts_with(&successor.wal) {
        successor.wal = wal;
    }
    true
}

fn tick(checked: &Checked, world: &mut World) -> bool {
    for id in 0..world.members.len() {
        let member = &mut world.members[id];
        member.age = (member.age + 1).min(TICKS);
        if let Some(write) = &mut member.write {
            write.age = (write.age + 1).min(TICKS);
        }
        if let Some((_, age)) = &mut member.agreed {
            *age = (*age + 1).min(TICKS);
        }
        if let Some((_, age)) = &mut member.asks {
            *age = (*age + 1).min(TICKS);
        }
        if member.holds.is_some() {
            member.sent += 1;
            let late = if checked.mistake == Some(Mistake::FenceAfterTtl) { 3 } else { 0 };
            if member.sent >= fenced_after() + late {
                member.fenced();
            }
        }
    }
    true
}
