//! What can go wrong between a client and the server. Pure: the session carries it out.

use crate::{log::Verb, server::Incoming};

/// Which requests a rule is about. Empty fields: any.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct On {
    /// Only requests that change something.
    pub writes: bool,
    /// Only these verbs, as an authorizer names them: get, list, watch, create, update, patch, delete, deletecollection.
    pub verbs: Vec<String>,
    /// Only this resource, as in `databases.holdfast.dev` or `pods`.
    pub resource: String,
    /// Only this name.
    pub name: String,
    /// Only this subresource, such as `status`.
    pub subresource: String,
    /// Only the object itself, no subresource.
    pub main: bool,
}

impl On {
    /// Every request that changes something and is counted.
    pub fn writes() -> Self {
        Self { writes: true, ..Self::default() }
    }

    /// Every request.
    pub fn any() -> Self {
        Self::default()
    }

    /// Every request for a resource.
    pub fn resource(resource: &str) -> Self {
        Self { resource: resource.into(), ..Self::default() }
    }

    /// Only with this verb.
    #[must_use]
    pub fn verb(mut self, verb: &str) -> Self {
        self.verbs.push(verb.into());
        self
    }

    /// Only for the object of this name.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        self.name = name.into();
        self
    }

    /// Only the object itself, no subresource.
    #[must_use]
    pub fn main(mut self) -> Self {
        self.main = true;
        self
    }

    /// Only a subresource.
    #[must_use]
    pub fn subresource(mut self, name: &str) -> Self {
        self.subresource = name.into();
        self
    }

    pub(crate) fn matches(&self, incoming: &Incoming, resource: &str, counted: bool) -> bool {
        let target = &incoming.target;
        let is = |wanted: &str, given: &str| wanted.is_empty() || wanted == given;
        (!self.writes || counted)
            && (self.verbs.is_empty() || self.verbs.iter().any(|v| v == incoming.verb()))
            && is(&self.resource, resource)
            && is(&self.name, &target.name)
            && is(&self.subresource, &target.subresource)
            && (!self.main || target.subresource.is_empty())
    }
}

/// Which of the requests that a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nth {
    /// This one, from 1.
    Only(u64),
    /// Each whose number is a multiple of this.
    Every(u64),
    /// The first so many.
    First(u64),
    /// All.
    All,
}

impl Nth {
    pub(crate) fn is(self, number: u64) -> bool {
        match self {
            Self::Only(k) => number == k,
            Self::Every(k) => k > 0 && number.is_multiple_of(k),
            Self::First(k) => number <= k,
            Self::All => true,
        }
    }
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The client dies before the request reaches the server. From then on nothing is answered any more.
    DieBefore,
    /// The client dies when the server has done what was asked, and never sees the answer.
    DieAfter,
    /// The server does what was asked, and the connection is reset before the answer.
    LoseAnswer,
    /// The connection is reset before the request reaches the server.
    Reset,
    /// The request never reaches the server, and no answer comes.
    Hang,
    /// The server does what was asked, and no answer comes.
    HangAfter,
    /// 409: somebody was faster. Nothing is done.
    Conflict,
    /// 500. Nothing is done.
    InternalError,
    /// 503. Nothing is done.
    Unavailable,
    /// 504. Nothing is done.
    GatewayTimeout,
    /// 403. Nothing is done.
    Forbidden,
    /// Another writer changes the very object just before: its resourceVersion is another one.
    SecondWriter,
    /// Somebody deletes the very object just before, and another one bears its name when the request arrives: a twin with a uid of
    /// its own. A pod is only deleted, by force, and its controller has some seconds to make another.
    Replaced,
    /// The client dies, and the request, long on its way, reaches the server when the next life has been at work for a while.
    Late,
}

/// A fault and when it strikes. The first rule that strikes wins; all count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Which requests are counted.
    pub on: On,
    /// At which of them.
    pub nth: Nth,
    /// What happens.
    pub fault: Fault,
}

impl Rule {
    /// A fault at the k-th counted write, from 1.
    pub fn at_write(k: u64, fault: Fault) -> Self {
        Self { on: On::writes(), nth: Nth::Only(k), fault }
    }

    /// A fault at each k-th counted write.
    pub fn every_write(k: u64, fault: Fault) -> Self {
        Self { on: On::writes(), nth: Nth::Every(k), fault }
    }

    /// A fault at all requests of a kind.
    pub fn always(on: On, fault: Fault) -> Self {
        Self { on, nth: Nth::All, fault }
    }
}

/// Writes that are not counted, since they come by the clock or are for people: a leader's Lease, events.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Uncounted {
    /// Resources, with the name of the object or without for all of them.
    pub of: Vec<(String, Option<String>)>,
}

impl Uncounted {
    /// Leaves out a resource.
    #[must_use]
    pub fn resource(mut self, resource: &str) -> Self {
        self.of.push((resource.into(), None));
        self
    }

    /// Leaves out one object of a resource.
    #[must_use]
    pub fn object(mut self, resource: &str, name: &str) -> Self {
        self.of.push((resource.into(), Some(name.into())));
        self
    }

    pub(crate) fn counts(&self, verb: Option<Verb>, resource: &str, name: &str) -> bool {
        let out = |(of, only): &(String, Option<String>)| {
            of == resource && only.as_deref().is_none_or(|only| only == name)
        };
        verb.is_some() && !self.of.iter().any(out)
    }
}
