//! Who is primary: the decision, as pure functions.
//!
//! An agent calls [`decide`] with what it sees and does what it says; it answers other members with [`answer`], and changes the
//! synchronous set in the steps of [`change`]. The truth is the Lease `<database>-primary`, changed only with a resourceVersion
//! precondition, so that of two members who decide to take it one fails. While its holder does not reach the API server, it stays if
//! all members [`agree`]. The crate `holdfast-model` explores these very
//! functions with a model checker.

mod decide;
mod promise;
mod record;
mod stay;
mod synchronous;
mod view;

#[cfg(test)]
mod tests;

pub use decide::decide;
pub use promise::{Call, Promise, answer, vote};
pub use record::{HandOver, Holder, Record, Switchover, fence_after, successor};
pub use stay::{Stay, Stays, admitted, agree, whose_consent};
pub use synchronous::{Change, Synchronous, change, next_synchronous};
pub use view::{Action, Data, Server, View, Vote};
