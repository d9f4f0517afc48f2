//! What is explored, and what must hold in every state.

use crate::{
    fair,
    mistakes::Mistake,
    step::{self, Step},
    world::{Server, World},
};
use holdfast_core::crd::database::DurabilityMode;
use stateright::{Model, Property};

/// What is checked.
#[derive(Clone, Debug)]
pub struct Checked {
    /// Members.
    pub members: u8,
    /// Durability.
    pub mode: DurabilityMode,
    /// Clocks tell time, at most five in a hundred wrong. Without them a TTL may be over at any time and never.
    pub clocks: bool,
    /// Restarts and losses at most.
    pub faults: u8,
    /// Pods and volumes are lost, too.
    pub losses: bool,
    /// The synchronous set changes.
    pub sets: bool,
    /// Primaries hand over.
    pub hand_overs: bool,
    /// Holders stay without the API server.
    pub stays: bool,
    /// Renewals reach the API server.
    pub renews: bool,
    /// Confirmations that a changed set asks for at most.
    pub confirmations: u8,
    /// Commits written at most, with one that is there from the beginning.
    pub commits: u8,
    /// Terms at most.
    pub terms: u8,
    /// Made on purpose.
    pub mistake: Option<Mistake>,
}

impl Checked {
    /// Confirmations for each commit at the beginning.
    fn waits_for(&self) -> u8 {
        match self.mode {
            DurabilityMode::Asynchronous => 0,
            _ => 1,
        }
    }
}

impl Model for Checked {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::calm(self.members, self.waits_for())]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        step::possible(self, world, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        step::after(self, world, &step)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![Property::<Self>::always(
            "no commit is lost, no timeline is given twice",
            |checked, world| {
                // Asynchronous promises less: only that one writes at a time.
                checked.mode == DurabilityMode::Asynchronous || world.wrong.is_none()
            },
        )];
        if self.clocks {
            all.push(Property::always("one accepts writes", |_, world: &World| {
                world.members.iter().filter(|m| m.server == Server::Primary).count() <= 1
            }));
        }
        all.push(Property::always("it comes back", |checked, world: &World| {
            checked.mistake.is_some() || fair::comes_back(checked, world)
        }));
        all
    }
}
