//! Measures operators against an API server of their own, without kubelets and controllers (`e2e/cluster/bare`): how many
//! requests they make, how long they take, how much memory and processor time they need.
//!
//! What kubelets, Kubernetes' controllers and agents would do is done by [`world`], so that Databases really become Ready.

pub mod audit;
pub mod process;
pub mod report;
pub mod run;
pub mod seed;
pub mod world;
