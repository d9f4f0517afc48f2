//! What is to be done about claims and volumes. Pure: no clock, no calls.

pub mod claim;
#[cfg(test)]
mod claim_tests;
pub mod names;
pub mod object;
pub mod origin;
pub mod quantity;
pub mod topology;
pub mod volume;

pub use claim::{Facts, Step, claim};
pub use object::persistent_volume;
pub use volume::{VolumeStep, volume};
