//! One request of a sequence, with names where uids and revisions will be: both servers give their own.

use serde_json::Value;
use std::fmt;

/// What the body of a write is made from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// From nothing.
    Nothing,
    /// From the object as it was last seen in an answer; it may have changed since.
    Seen,
    /// From the object as a GET just before shows it.
    Fresh,
}

/// One request. Texts in it may be references: `{uid Kind/name}`, `{rv Kind/name}`, `{first-rv Kind/name}`,
/// `{first-uid Kind/name}`, `{continue Kind}`, `{generated prefix}`.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Whose request it is.
    pub user: usize,
    /// HTTP method.
    pub method: &'static str,
    /// The kind, by its place in the list of kinds.
    pub kind: usize,
    /// Empty: the collection.
    pub name: String,
    /// Empty: the object itself.
    pub subresource: &'static str,
    /// Query parameters.
    pub query: Vec<(String, String)>,
    /// Content type of the body.
    pub content: &'static str,
    /// What the body is made from; the body is then merged into it.
    pub base: Base,
    /// The body; null: none.
    pub body: Value,
}

/// JSON as such.
pub const JSON: &str = "application/json";
/// RFC 7386.
pub const MERGE: &str = "application/merge-patch+json";
/// RFC 6902.
pub const PATCH: &str = "application/json-patch+json";
/// Server-side apply.
pub const APPLY: &str = "application/apply-patch+yaml";

impl Step {
    /// A request without a body.
    pub fn new(user: usize, method: &'static str, kind: usize, name: &str) -> Self {
        Self {
            user,
            method,
            kind,
            name: name.into(),
            subresource: "",
            query: Vec::new(),
            content: JSON,
            base: Base::Nothing,
            body: Value::Null,
        }
    }

    /// Sets a query parameter.
    pub fn ask(&mut self, name: &str, value: &str) {
        self.query.push((name.into(), value.into()));
    }

    /// Whether it only asks what would happen.
    pub fn is_dry(&self) -> bool {
        self.query.iter().any(|(name, _)| name == "dryRun") || self.body["dryRun"].is_array()
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.method)?;
        let kind = super::kinds::all().get(self.kind).map_or("?", |k| k.plural);
        write!(f, "{kind}")?;
        for part in [self.name.as_str(), self.subresource].into_iter().filter(|p| !p.is_empty()) {
            write!(f, "/{part}")?;
        }
        let query: Vec<String> = self.query.iter().map(|(name, value)| format!("{name}={value}")).collect();
        if !query.is_empty() {
            write!(f, "?{}", query.join("&"))?;
        }
        write!(f, " by {}", super::USERS.get(self.user).copied().unwrap_or("?"))?;
        if !self.body.is_null() {
            let base = match self.base {
                Base::Nothing => String::new(),
                other => format!(" {other:?} +"),
            };
            write!(f, " {}{base} {}", self.content.trim_start_matches("application/"), self.body)?;
        }
        Ok(())
    }
}
