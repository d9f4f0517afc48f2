//! An in-memory Kubernetes API server under the real kube client, and faults in front of it.
//!
//! A [`Server`] keeps objects as the API server does: resource versions, generations, field managers, finalizers,
//! preconditions, validation. A [`Session`] is one life of one client of it; its kube client is made by
//! [`Session::client`], and its faults are [`Rule`]s. There are no sockets, no threads and no real time: on a paused
//! tokio clock the same run gives the same objects.
//!
//! Nothing moves by itself: [`Server::collect`] is the garbage collector's next step. The other controllers of Kubernetes, and
//! the garbage collector as well, run where a [`cluster::Cluster`] is started.
#![deny(rustdoc::broken_intra_doc_links)]

mod builtin;
mod clock;
pub mod cluster;
mod dump;
mod faults;
mod fields;
mod garbage;
mod kinds;
mod log;
mod path;
mod read;
mod rest;
mod schema;
mod selector;
mod serve;
mod server;
mod session;
mod status;
mod store;
mod tamper;
mod watch;

pub use clock::Clock;
pub use dump::Mask;
pub use faults::{Fault, Nth, On, Rule, Uncounted};
pub use log::{Verb, Write};
pub use server::{Answer, Server};
pub use session::{Lose, Session};
pub use tamper::Tamper;

/// The annotation by which the second writer of [`Fault::SecondWriter`] changes objects.
pub const TOUCHED: &str = "testkit.local/touched";
