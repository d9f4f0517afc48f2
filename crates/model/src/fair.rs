//! From any state: once faults end and messages arrive, there is a primary within a bounded number of rounds, and whoever was fenced
//! follows it.

use crate::{
    checked::Checked,
    step::{Step, after},
    world::{Id, Server, World},
};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Rounds of all members after which there must be a primary.
pub const ROUNDS: usize = 12;
/// Of so many states one is tried: a run costs a hundred times what a state costs.
const EVERY: u64 = 61;

/// Tries a state, if it is one of those: with everybody there, and with each member but one where the promise covers that.
pub fn comes_back(checked: &Checked, world: &World) -> bool {
    let mut hasher = DefaultHasher::new();
    world.hash(&mut hasher);
    if world.wrong.is_some() || !hasher.finish().is_multiple_of(EVERY) {
        return true;
    }
    run(checked, world, None).is_ok()
        && (0..checked.members).all(|dead| !can_spare(world, dead) || run(checked, world, Some(dead)).is_ok())
}

/// Why a state does not come back: who was missing, and where it ended.
pub fn why(checked: &Checked, world: &World) -> Option<String> {
    let spared = (0..checked.members).filter(|dead| can_spare(world, *dead)).map(Some);
    std::iter::once(None).chain(spared).find_map(|dead| {
        let end = run(checked, world, dead).err()?;
        Some(format!("without {dead:?} it ends in {end:?}"))
    })
}

/// Whether the members without this one know every acknowledged commit for sure.
fn can_spare(world: &World, dead: Id) -> bool {
    let Some((_, entry)) = world.lease.last() else { return false };
    let others = |id: &Id| *id != dead && world.members[usize::from(*id)].data;
    // A write that lands later may change who is asked.
    if world.members.iter().any(|m| m.write.is_some()) || entry.set == 0 || entry.confirmations == 0 {
        return false;
    }
    let electorate = entry.set | 1 << entry.last_holder;
    let known =
        (0..world.members.len() as Id).filter(|id| electorate & (1 << id) != 0).filter(others).count();
    known + usize::from(entry.confirmations) >= electorate.count_ones() as usize
}

/// Runs a fair schedule.
///
/// Errors: what is missing at its end.
pub fn run(checked: &Checked, world: &World, dead: Option<Id>) -> Result<usize, World> {
    let checked = Checked { terms: u8::MAX, clocks: false, mistake: None, ..checked.clone() };
    let mut world = world.clone();
    for id in 0..world.members.len() as Id {
        let member = world.at(id);
        if Some(id) == dead {
            member.fenced();
            member.up = false;
        } else if !member.up {
            member.up = true;
            member.boot += 1;
            member.seen = 0;
        }
    }
    for round in 0..ROUNDS {
        if settled(&world, dead) {
            return Ok(round);
        }
        for id in 0..checked.members {
            for step in turn_of(&checked, &world, id, dead, round) {
                if let Some(next) = after(&checked, &world, &step) {
                    world = next;
                }
            }
        }
    }
    if settled(&world, dead) { Ok(ROUNDS) } else { Err(world) }
}

/// One member's fair turn, as steps; those that do not apply do nothing.
fn turn_of(checked: &Checked, world: &World, id: Id, dead: Option<Id>, round: usize) -> Vec<Step> {
    if Some(id) == dead {
        return vec![Step::Land { id, heard: false }];
    }
    let alive = world.lease.last().is_some_and(|(_, e)| match e.holder {
        Some((holder, boot)) => {
            let member = &world.members[usize::from(holder)];
            member.up && member.boot == boot && Some(holder) != dead
        }
        None => e.hand_over.is_some() && round < 4,
    });
    let expired = !alive;
    let member = &world.members[usize::from(id)];
    // Who cannot renew any more is fenced in time.
    let lost = member.holds.as_ref().is_some_and(|(held, _)| {
        world.lease.last().is_none_or(|(_, e)| e.holder != held.holder || e.term != held.term)
    });
    let mut steps: Vec<Step> = lost.then_some(Step::Fence(id)).into_iter().collect();
    steps.extend([
        Step::Land { id, heard: true },
        Step::See(id),
        Step::Turn { id, expired, terminated: false },
    ]);
    let others = (0..checked.members).filter(|from| *from != id && Some(*from) != dead);
    steps.extend(others.map(|from| Step::Answer { from, to: id, expired }));
    steps.extend([Step::Count(id), Step::Land { id, heard: true }, Step::Renew(id)]);
    steps.extend((0..4).map(|_| Step::Stream(id)));
    steps
}

/// There is a primary, and everybody else follows it and has what it has.
fn settled(world: &World, dead: Option<Id>) -> bool {
    let all = 0..world.members.len() as Id;
    let Some(primary) = all.clone().find(|id| world.reigns(*id) && Some(*id) != dead) else { return false };
    let wal = &world.members[usize::from(primary)].wal;
    all.filter(|id| *id != primary && Some(*id) != dead).all(|id| {
        let member = &world.members[usize::from(id)];
        member.server == Server::Standby(Some(primary)) && member.wal == *wal
    })
}
