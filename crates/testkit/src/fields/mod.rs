//! Who owns which field: managedFields and server-side apply. Pure.
//!
//! The algebra is that of structured-merge-diff: sets of paths, one for each manager, compared and merged by the
//! topology of the schema (which lists are maps, which are sets, what is atomic).

pub(crate) mod managers;
pub(crate) mod merge;
pub(crate) mod set;
pub(crate) mod topology;

#[cfg(test)]
mod tests;
