//! What the Lease says.

use crate::Lsn;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Who holds the Lease: a pod in one incarnation of its container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holder {
    /// Pod name.
    pub pod: String,
    /// Pod uid.
    pub uid: String,
    /// Drawn when the container started; also in its termination message.
    pub nonce: String,
}

/// What the Lease says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The holder; none: released.
    pub holder: Option<Holder>,
    /// Pod that held it last, also after a release: nobody has more of the data.
    pub last_holder: String,
    /// Counts takeovers; never falls.
    pub term: u64,
    /// Timeline that the holder is on, or was allotted for its promotion. 0: not known yet.
    pub timeline: u32,
    /// Data set that all this is about.
    pub data_set: String,
    /// PostgreSQL's system identifier of it; empty before initdb is done.
    pub system_identifier: String,
    /// Standbys on whose confirmation postgres may rely.
    pub synchronous: Vec<String>,
    /// How many of them confirm each commit.
    pub confirmations: i32,
    /// The instances as the holder knows them, itself included: nobody else takes the Lease, so that their consent is as good as a renewal
    /// while the API server is away. Empty: it was written by an agent that knew nothing of this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// The last holder stopped in good order and names its successor. Only without a holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<HandOver>,
    /// The last switchover that was asked for, and what became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switchover: Option<Switchover>,
}

/// A switchover that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switchover {
    /// As it was asked for: each value is carried out once.
    pub asked: String,
    /// Why it was refused; empty: it was not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub refused: String,
}

/// Who is to be primary: `None`, this one is already.
///
/// Errors: why nobody qualifies.
pub fn successor(
    asked: &str,
    me: &str,
    record: &Record,
    streaming: &[String],
) -> Result<Option<String>, String> {
    let wanted = asked.split_once('@').map_or(asked, |(pod, _)| pod);
    if wanted == me {
        return Ok(None);
    }
    let counts = |pod: &String| record.synchronous.is_empty() || record.synchronous.contains(pod);
    let any = wanted == "any";
    if let Some(pod) = streaming.iter().find(|pod| counts(pod) && (any || *pod == wanted)) {
        return Ok(Some(pod.clone()));
    }
    Err(match (any, streaming.iter().any(|pod| pod == wanted)) {
        (true, _) => format!("no standby of the synchronous set streams from {me}"),
        (false, true) => format!("{wanted} streams from {me}, but is not in the synchronous set"),
        (false, false) => format!("{wanted} does not stream from {me}"),
    })
}

/// A planned change of primary: the server has shut down with every standby that streamed having all of its WAL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandOver {
    /// Pod of the successor. For half a TTL nobody else takes the Lease.
    pub to: String,
    /// Where the shutdown checkpoint's record begins, the last one in the WAL: whoever is past it has everything.
    pub lsn: Lsn,
    /// A switchover, not the end of a pod. Only for those who count.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub asked: bool,
    /// Milliseconds for which nothing could be written when this was said. Only for those who count.
    #[serde(default)]
    pub closed_millis: u64,
}

/// How long after the last request that renewed the Lease was *sent* its holder has killed everything, unless another one
/// succeeded: a sixth of the TTL is left for the killing, and for clocks of different speed.
pub fn fence_after(ttl: Duration) -> Duration {
    ttl.saturating_sub(ttl / 6)
}

impl Record {
    /// The members that any acknowledged commit may be on: the synchronous set and its primary.
    pub(super) fn electorate(&self) -> Vec<&str> {
        let mut all: Vec<&str> = self.synchronous.iter().map(String::as_str).collect();
        if !self.last_holder.is_empty() && !all.contains(&self.last_holder.as_str()) {
            all.push(&self.last_holder);
        }
        all
    }
}
