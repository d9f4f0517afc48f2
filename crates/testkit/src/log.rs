//! The record of writes, for assertions.

/// What a request to change something was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verb {
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH, of any form.
    Patch,
    /// Server-side apply.
    Apply,
    /// DELETE of one object.
    Delete,
    /// DELETE of a collection.
    DeleteCollection,
}

/// A request to change something that reached the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// What it was.
    pub verb: Verb,
    /// The resource, as in `databases.holdfast.dev`.
    pub resource: String,
    /// The kind.
    pub kind: String,
    /// The namespace; empty for cluster-wide kinds.
    pub namespace: String,
    /// The name; for a create, the one that the object got.
    pub name: String,
    /// Empty, or the subresource.
    pub subresource: String,
    /// The client.
    pub who: String,
    /// The HTTP status code of the answer.
    pub code: u16,
    /// Whether anything was different afterwards.
    pub changed: bool,
    /// The server's revision afterwards.
    pub revision: u64,
}

impl std::fmt::Display for Write {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {} {}/{}", self.who, self.verb, self.resource, self.namespace, self.name)?;
        if !self.subresource.is_empty() {
            write!(f, "/{}", self.subresource)?;
        }
        write!(f, " -> {}{}", self.code, if self.changed { "" } else { ", nothing changed" })
    }
}
