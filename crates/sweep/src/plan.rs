//! What goes wrong in one run, as one line that can be read and typed.
//!
//! `scale-up database@12:die-after` is the workload scale-up, in which the database operator dies right after its twelfth
//! write. Troubles are joined by commas: `scale-up database@12:die-after,backups@1:die-before`.

use crate::{operators::Operator, world::Disturbance};
use holdfast_testkit::Fault;
use std::{fmt, str::FromStr};

/// Faults of single requests, by name.
pub const FAULTS: [(&str, Fault); 14] = [
    ("die-before", Fault::DieBefore),
    ("die-after", Fault::DieAfter),
    ("lose-answer", Fault::LoseAnswer),
    ("reset", Fault::Reset),
    ("hang", Fault::Hang),
    ("hang-after", Fault::HangAfter),
    ("conflict", Fault::Conflict),
    ("error-500", Fault::InternalError),
    ("error-503", Fault::Unavailable),
    ("error-504", Fault::GatewayTimeout),
    ("forbidden", Fault::Forbidden),
    ("second-writer", Fault::SecondWriter),
    ("replaced", Fault::Replaced),
    ("late", Fault::Late),
];

const DISTURBANCES: [(&str, Disturbance); 4] = [
    ("cut", Disturbance::Cut),
    ("expire", Disturbance::Expire),
    ("coalesce", Disturbance::Coalesce),
    ("lose", Disturbance::Lose),
];

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// `database@12:die-after`: a fault at the operator's k-th write, from 1.
    At(Operator, u64, Fault),
    /// `database%3:conflict`: a fault at every k-th write.
    Every(Operator, u64, Fault),
    /// `database@12:stale-3`: dies after its k-th write, and for a minute its next life sees the server's caches as they were
    /// three of its writes before, or when the workload began.
    Stale(Operator, u64, u64),
    /// `database=pods:forbidden`: all requests for a resource fail so for two minutes.
    Resource(Operator, String, Fault),
    /// `database=pods:lag`: the operator's watch of a resource is ten seconds late, and no other is.
    Lag(Operator, String),
    /// `database+overlap`: a second process of the operator works beside the first, as when a leader was frozen.
    Overlap(Operator),
    /// `watches:coalesce`: see [`Disturbance`].
    Watches(Disturbance),
}

impl Trouble {
    /// Whether it is about this operator.
    pub fn is_of(&self, operator: Operator) -> bool {
        match self {
            Self::At(who, ..)
            | Self::Every(who, ..)
            | Self::Stale(who, ..)
            | Self::Resource(who, ..)
            | Self::Lag(who, ..)
            | Self::Overlap(who) => *who == operator,
            Self::Watches(_) => true,
        }
    }
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fault = |fault: &Fault| name_of(&FAULTS, fault);
        match self {
            Self::At(who, k, what) => write!(f, "{who}@{k}:{}", fault(what)),
            Self::Every(who, k, what) => write!(f, "{who}%{k}:{}", fault(what)),
            Self::Stale(who, k, back) => write!(f, "{who}@{k}:stale-{back}"),
            Self::Resource(who, resource, what) => write!(f, "{who}={resource}:{}", fault(what)),
            Self::Lag(who, resource) => write!(f, "{who}={resource}:lag"),
            Self::Overlap(who) => write!(f, "{who}+overlap"),
            Self::Watches(what) => write!(f, "watches:{}", name_of(&DISTURBANCES, what)),
        }
    }
}

fn name_of<T: PartialEq>(names: &[(&'static str, T)], value: &T) -> &'static str {
    names.iter().find(|(_, v)| v == value).map_or("unknown", |(name, _)| name)
}

fn by_name<T: Copy>(names: &[(&'static str, T)], name: &str) -> Result<T, String> {
    let found = names.iter().find(|(n, _)| *n == name);
    found.map(|(_, value)| *value).ok_or_else(|| {
        let known: Vec<_> = names.iter().map(|(n, _)| *n).collect();
        format!("{name:?} is none of {}", known.join(", "))
    })
}

impl FromStr for Trouble {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(who) = text.strip_suffix("+overlap") {
            return Ok(Self::Overlap(who.parse()?));
        }
        let (place, what) = text.split_once(':').ok_or_else(|| format!("no colon in {text:?}"))?;
        if place == "watches" {
            return Ok(Self::Watches(by_name(&DISTURBANCES, what)?));
        }
        let number = |k: &str| k.parse::<u64>().map_err(|error| format!("{k:?}: {error}"));
        if let Some((who, k)) = place.split_once('@') {
            return Ok(match what.strip_prefix("stale-") {
                Some(back) => Self::Stale(who.parse()?, number(k)?, number(back)?),
                None => Self::At(who.parse()?, number(k)?, by_name(&FAULTS, what)?),
            });
        }
        if let Some((who, k)) = place.split_once('%') {
            return Ok(Self::Every(who.parse()?, number(k)?, by_name(&FAULTS, what)?));
        }
        let (who, resource) = place.split_once('=').ok_or_else(|| format!("no @, % or = in {text:?}"))?;
        if what == "lag" {
            return Ok(Self::Lag(who.parse()?, resource.into()));
        }
        Ok(Self::Resource(who.parse()?, resource.into(), by_name(&FAULTS, what)?))
    }
}

/// A workload and what goes wrong in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Name of the workload.
    pub workload: String,
    /// What goes wrong; nothing: the calm run. Of two deaths of one operator at numbered writes, the second one's count
    /// begins with its second life.
    pub troubles: Vec<Trouble>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let troubles: Vec<_> = self.troubles.iter().map(ToString::to_string).collect();
        write!(
            f,
            "{} {}",
            self.workload,
            if troubles.is_empty() { "calm".into() } else { troubles.join(",") }
        )
    }
}

impl FromStr for Plan {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (workload, troubles) = text.trim().split_once(' ').ok_or("a plan is WORKLOAD TROUBLE,TROUBLE")?;
        let troubles = match troubles.trim() {
            "calm" => Ok(Vec::new()),
            troubles => troubles.split(',').map(str::parse).collect(),
        };
        Ok(Self { workload: workload.into(), troubles: troubles? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_read_as_it_is_written() {
        for text in [
            "scale-up calm",
            "create database@12:die-after",
            "create database@12:die-after,database@3:die-before,backups%2:conflict",
            "grow database@4:stale-3",
            "grow database=pods:lag,database@2:replaced,backups@1:late",
            "grow database=pods:forbidden,restores+overlap,watches:lose",
        ] {
            assert_eq!(text.parse::<Plan>().unwrap().to_string(), text);
        }
        assert!("create database@x:die-after".parse::<Plan>().is_err());
        assert!("create nobody@1:die-after".parse::<Plan>().is_err());
        assert!("create database@1:explode".parse::<Plan>().unwrap_err().contains("die-before"));
    }
}
