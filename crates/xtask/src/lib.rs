//! Generates what is derived from the code, and checks that what is in the tree is what would be generated.

pub mod crds;
pub mod files;
pub mod schema;
