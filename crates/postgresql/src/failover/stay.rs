//! When the holder of the Lease does not reach the API server: it stays for as long as all members agree.
//!
//! A member that agrees counts its clock from then on as if the Lease had just been renewed, and nobody else may take it: so the
//! agreement of all is as good as a renewal, counted by the holder from when it asked.

use super::{Holder, Record, View};
use serde::{Deserialize, Serialize};

/// The holder's question: may it stay for one more TTL?
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stay {
    /// Who asks.
    pub holder: Holder,
    /// The term that it began.
    pub term: u64,
    /// The data set that it leads.
    pub data_set: String,
}

/// What a member says to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Stays {
    /// Pod of the member.
    pub pod: String,
    /// Why not; empty: it agrees.
    pub refused: String,
}

/// Who must agree, every one of them. `None`: asking is of no use, since somebody else could take the Lease, or there is nobody who
/// would know of it.
pub fn whose_consent(record: &Record) -> Option<Vec<String>> {
    let holder = record.holder.as_ref()?;
    let others: Vec<String> = record.members.iter().filter(|m| **m != holder.pod).cloned().collect();
    (!others.is_empty() && others.len() < record.members.len()).then_some(others)
}

/// The instances as the Lease of this holder names them: those that are wanted, itself among them, and whoever still is in the
/// synchronous set: one that is to go may be the only other one with the last commit.
pub fn admitted(me: &str, wanted: &[String], synchronous: &[String]) -> Vec<String> {
    let mut all = [wanted, synchronous].concat();
    all.push(me.into());
    all.sort();
    all.dedup();
    all
}

/// Whether a member agrees. If so it must count its [`View::consent`] from this moment, before it answers.
///
/// Errors: why not.
pub fn agree(view: &View, stay: &Stay) -> Result<(), String> {
    let record = view.record().ok_or("the Lease is not about this data set")?;
    if record.holder.as_ref() != Some(&stay.holder)
        || record.term != stay.term
        || record.data_set != stay.data_set
    {
        return Err(format!("the Lease names another holder in term {}", record.term));
    }
    // A candidate that has its promise may take the Lease at any moment.
    if view.promise.binds(record, view.version) {
        return Err(format!("it has promised term {} to a candidate", view.promise.term));
    }
    if view.holder_terminated {
        return Err("the holder's container was seen terminated".into());
    }
    Ok(())
}
