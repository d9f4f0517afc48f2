//! A database of a few members as the model checker sees it: the Lease with its versions, and each member's disk, server and agent.
//!
//! Networks lose, delay and cut by never being chosen: whatever needs the network is an action that may come late or not at all.

/// A member: its number.
pub type Id = u8;

/// A set of members, one bit each.
pub type Members = u8;

/// One version of the Lease.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Entry {
    /// Member and incarnation.
    pub holder: Option<(Id, u8)>,
    pub last_holder: Id,
    pub term: u8,
    pub timeline: u8,
    pub set: Members,
    pub confirmations: u8,
    /// So many members are named, from the first on.
    pub members: u8,
    /// Successor, and what it must be past.
    pub hand_over: Option<(Id, u8)>,
}

/// A write of the Lease on its way to the API server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub entry: Entry,
    /// The version that it replaces.
    pub over: u8,
    /// Incarnation that sent it.
    pub boot: u8,
    /// Ticks since it was sent.
    pub age: u8,
}

/// What the server of a member does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    Down,
    /// Upstream, if it receives.
    Standby(Option<Id>),
    Primary,
}

/// A call for promises that is under way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Poll {
    pub term: u8,
    pub version: u8,
    /// Timeline and length of the WAL of those that have promised.
    pub votes: Vec<Option<(u8, u8)>>,
}

/// A member.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Member {
    /// Its pod is there.
    pub up: bool,
    /// Incarnation of its container.
    pub boot: u8,
    /// Its volume holds data.
    pub data: bool,
    /// The WAL: numbers of commits.
    pub wal: Vec<u8>,
    pub timeline: u8,
    pub server: Server,
    /// What postgres obeys while it is primary.
    pub obeys: (Members, u8),
    /// What each standby has confirmed to this primary.
    pub confirmed: Vec<u8>,
    /// Promised: term and version.
    pub promise: (u8, u8),
    /// Version of the Lease that it saw last; 0: none yet.
    pub seen: u8,
    /// The Lease that it believes to hold.
    pub holds: Option<(Entry, u8)>,
    pub poll: Option<Poll>,
    pub write: Option<Write>,
    /// With clocks: own time since `seen` changed, and since the request was sent that last renewed what it holds.
    pub age: u8,
    pub sent: u8,
    /// With clocks: whose staying it agreed to (member, incarnation, term), and own time since.
    pub agreed: Option<((Id, u8, u8), u8)>,
    /// With clocks: who has agreed that it stays, and own time since it asked.
    pub asks: Option<(Members, u8)>,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub members: Vec<Member>,
    /// Versions of the Lease that somebody still refers to, oldest first: number and content. The last is the current one.
    pub lease: Vec<(u8, Entry)>,
    /// The longest WAL of which every commit was acknowledged to a client.
    pub acknowledged: Vec<u8>,
    /// Timelines begun so far: number and term.
    pub timelines: Vec<(u8, u8)>,
    /// Commits written so far.
    pub written: u8,
    /// Faults so far.
    pub faults: u8,
    /// What must never be.
    pub wrong: Option<&'static str>,
}

impl World {
    /// Three or five members, the first of them primary on timeline 1 with one commit everywhere.
    pub fn calm(members: u8, confirmations: u8) -> Self {
        let set = ((1 << members) - 1) & !1;
        let set = if confirmations == 0 { 0 } else { set };
        let entry = Entry {
            holder: Some((0, 1)),
            last_holder: 0,
            term: 1,
            timeline: 1,
            set,
            confirmations,
            members,
            hand_over: None,
        };
        let member = |id: u8| Member {
            up: true,
            boot: 1,
            data: true,
            wal: vec![0],
            timeline: 1,
            server: if id == 0 { Server::Primary } else { Server::Standby(Some(0)) },
            obeys: (set, confirmations),
            confirmed: vec![1; usize::from(members)],
            promise: (0, 0),
            seen: 1,
            holds: (id == 0).then(|| (entry.clone(), 1)),
            poll: None,
            write: None,
            age: 0,
            sent: 0,
            agreed: None,
            asks: None,
        };
        Self {
            members: (0..members).map(member).collect(),
            lease: vec![(1, entry.clone())],
            acknowledged: vec![0],
            timelines: vec![(1, 1)],
            written: 1,
            faults: 0,
            wrong: None,
        }
    }

    /// Number of the current version.
    pub fn version(&self) -> u8 {
        self.lease.last().map_or(0, |(v, _)| *v)
    }

    /// A version's content.
    pub fn entry(&self, version: u8) -> Option<&Entry> {
        self.lease.iter().find(|(v, _)| *v == version).map(|(_, e)| e)
    }

    /// Whether it is a primary that may write: the current Lease names it, and its server is open.
    pub fn reigns(&self, id: Id) -> bool {
        let member = &self.members[usize::from(id)];
        self.lease.last().is_some_and(|(_, e)| e.holder == Some((id, member.boot)))
            && member.server == Server::Primary
            && self.lease.last().is_some_and(|(_, e)| e.timeline == member.timeline)
    }

    /// The same with the versions numbered anew from 1, in their order: renewals without end are one state.
    pub fn canonical(mut self) -> Self {
        let mut used: Vec<u8> = vec![self.version()];
        for m in &self.members {
            used.extend([m.seen, m.promise.1]);
            used.extend(m.holds.iter().map(|h| h.1));
            used.extend(m.poll.iter().map(|p| p.version));
            used.extend(m.write.iter().map(|w| w.over));
        }
        used.retain(|v| *v > 0);
        used.sort_unstable();
        used.dedup();
        // At most a handful: a promise and what a member saw, each.
        let new = |v: u8| used.iter().position(|u| *u == v).map_or(0, |i| i as u8 + 1);
        for m in &mut self.members {
            m.seen = new(m.seen);
            m.promise.1 = new(m.promise.1);
            if let Some(h) = &mut m.holds {
                h.1 = new(h.1);
            }
            if let Some(p) = &mut m.poll {
                p.version = new(p.version);
            }
            if let Some(w) = &mut m.write {
                w.over = new(w.over);
            }
        }
        self.lease.retain(|(v, _)| used.contains(v));
        for (v, _) in &mut self.lease {
            *v = new(*v);
        }
        self
    }
}

impl Member {
    /// Every process was killed, and what was in memory is gone.
    pub fn fenced(&mut self) {
        self.server = Server::Down;
        self.holds = None;
        self.poll = None;
        self.asks = None;
        self.sent = 0;
        self.confirmed = vec![0; self.confirmed.len()];
    }

    /// Sends a write of the Lease.
    pub fn send(&mut self, entry: Entry, over: u8) {
        let entry = match entry.holder {
            Some((id, _)) => Entry { holder: Some((id, self.boot)), ..entry },
            None => entry,
        };
        self.write = Some(Write { entry, over, boot: self.boot, age: 0 });
    }
}

impl World {
    /// A member, to be changed.
    pub fn at(&mut self, id: Id) -> &mut Member {
        &mut self.members[usize::from(id)]
    }

    /// Looks for what must never be.
    pub fn judge(&mut self) {
        let reigning = (0..self.members.len() as Id).find(|id| self.reigns(*id));
        if let Some(id) = reigning
            && !self.members[usize::from(id)].wal.starts_with(&self.acknowledged)
        {
            self.wrong = Some("an acknowledged commit is lost");
        }
    }
}
