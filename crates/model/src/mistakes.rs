//! Mistakes that the checker must find, or it could not find ours either.

/// A mistake in the protocol, made by the model around the product's functions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mistake {
    /// A holder ends its server only after its Lease may have been taken.
    FenceAfterTtl,
    /// A member promotes without asking those who confirmed commits.
    WithoutTheSet,
    /// The Lease is replaced whatever its version.
    NoPrecondition,
    /// A promise is given, and the member goes on receiving.
    AnswerWhileStreaming,
    /// A restart forgets what was promised.
    PromiseForgotten,
    /// The Lease names a smaller set, and only then postgres obeys it.
    SetInWrongOrder,
    /// A member that lost its volume counts as one with data.
    EmptyMemberLeads,
    /// A member that lost its volume, and with it its promises, follows at once.
    EmptyVolumeFollows,
    /// An earlier incarnation's end is taken for the holder's.
    LateTerminated,
    /// A new primary begins the timeline after its own, whatever the Lease allotted.
    TimelineNotAllotted,
    /// The successor of a planned change takes over without having everything.
    HandOverUnchecked,
    /// The holder counts the others' consent from when it has it, not from when it asked.
    StayFromAnswer,
    /// The holder stays with the consent of some.
    StayWithSome,
}

/// All of them.
pub const ALL: [Mistake; 13] = [
    Mistake::FenceAfterTtl,
    Mistake::WithoutTheSet,
    Mistake::NoPrecondition,
    Mistake::AnswerWhileStreaming,
    Mistake::PromiseForgotten,
    Mistake::SetInWrongOrder,
    Mistake::EmptyMemberLeads,
    Mistake::EmptyVolumeFollows,
    Mistake::LateTerminated,
    Mistake::TimelineNotAllotted,
    Mistake::HandOverUnchecked,
    Mistake::StayFromAnswer,
    Mistake::StayWithSome,
];
