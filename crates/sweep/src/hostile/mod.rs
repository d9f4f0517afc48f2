//! Changes of every field of every spec, generated from the schemas of the CRDs.
//!
//! Each is made on a cluster at rest, and in the middle of a first rollout, and taken back: it must be refused with the
//! field's name, carried out, or said to be impossible; afterwards all must be as before.

mod bases;
mod change;
mod combos;
mod compare;
mod generate;
mod ground;
mod lasting;
mod metadata;
mod options;
mod oracle;
pub mod parts;
mod path;
mod report;
mod run;
mod schema;
mod strings;
mod values;

pub use change::{Back, Change, Target};
pub use compare::LEFT;
pub use generate::{all, count};
pub use ground::Ground;
pub use options::{HELP, Moment, Options};
pub use oracle::{Answer, Seen, Verdict};
pub use report::{Outcome, Report};
pub use run::{chosen, run};

#[cfg(test)]
mod tests;
