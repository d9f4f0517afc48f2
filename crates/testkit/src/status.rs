//! Refusals, worded as Kubernetes words them. Pure.

use crate::kinds::Kind;
use serde_json::{Map, Value, json};

/// Why a request was refused: becomes a `Status` object.
#[derive(Clone, Debug, PartialEq)]
pub struct Refusal {
    /// HTTP status code.
    pub code: u16,
    /// The machine-readable reason; empty where Kubernetes gives none.
    pub reason: &'static str,
    /// The message for people.
    pub message: String,
    /// `details` of the Status.
    pub details: Value,
}

/// One thing that is wrong with a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// `FieldValueInvalid` and the like.
    pub reason: &'static str,
    /// The path, as in `spec.storage.size`.
    pub field: String,
    /// The message without the path.
    pub message: String,
}

impl Fault {
    /// A field that must be there is not.
    pub fn required(field: &str, more: &str) -> Self {
        let message =
            if more.is_empty() { "Required value".into() } else { format!("Required value: {more}") };
        Self { reason: "FieldValueRequired", field: field.into(), message }
    }

    /// A value that is not acceptable.
    pub fn invalid(field: &str, value: &Value, why: &str) -> Self {
        Self {
            reason: "FieldValueInvalid",
            field: field.into(),
            message: format!("Invalid value: {value}: {why}"),
        }
    }

    /// A structure that is not acceptable: it is not repeated.
    pub fn without_value(field: &str, why: &str) -> Self {
        Self { reason: "FieldValueInvalid", field: field.into(), message: format!("Invalid value: {why}") }
    }

    /// CEL rules that were not evaluated.
    pub fn unchecked() -> Self {
        Self::invalid(
            "<nil>",
            &Value::Null,
            "some validation rules were not checked because the object was invalid; correct the existing errors to complete validation",
        )
    }

    /// A value of the wrong type.
    pub fn wrong_type(field: &str, value: &Value, why: &str) -> Self {
        Self { reason: "FieldValueTypeInvalid", ..Self::invalid(field, value, why) }
    }

    /// Something that is there already.
    pub fn duplicate(field: &str, value: &Value) -> Self {
        Self {
            reason: "FieldValueDuplicate",
            field: field.into(),
            message: format!("Duplicate value: {value}"),
        }
    }

    /// Something that may not be done here.
    pub fn forbidden(field: &str, why: &str) -> Self {
        Self { reason: "FieldValueForbidden", field: field.into(), message: format!("Forbidden: {why}") }
    }

    /// A value that is not one of a list.
    pub fn not_supported(field: &str, value: &Value, supported: &[Value]) -> Self {
        let list: Vec<String> = supported.iter().map(Value::to_string).collect();
        Self {
            reason: "FieldValueNotSupported",
            field: field.into(),
            message: format!("Unsupported value: {value}: supported values: {}", list.join(", ")),
        }
    }

    /// Whether Kubernetes evaluates no CEL rule once it has found this.
    pub fn blocks_rules(&self) -> bool {
        matches!(
            self.reason,
            "FieldValueNotSupported"
                | "FieldValueRequired"
                | "FieldValueTooLong"
                | "FieldValueTooMany"
                | "FieldValueTypeInvalid"
        )
    }

    fn text(&self) -> String {
        format!("{}: {}", self.field, self.message)
    }
}

fn details(kind: &Kind, name: &str) -> Map<String, Value> {
    let mut details = Map::new();
    if !name.is_empty() {
        details.insert("name".into(), name.into());
    }
    if !kind.group.is_empty() {
        details.insert("group".into(), kind.group.clone().into());
    }
    details.insert("kind".into(), kind.plural.clone().into());
    details
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: String, details: Map<String, Value>) -> Self {
        Self { code, reason, message, details: Value::Object(details) }
    }

    /// There is no such object.
    pub fn not_found(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} not found", kind.qualified());
        Self::new(404, "NotFound", message, details(kind, name))
    }

    /// The name is taken.
    pub fn already_exists(kind: &Kind, name: &str) -> Self {
        let message = format!("{} {name:?} already exists", kind.qualified());
        Self::new(409, "AlreadyExists", message, details(kind, name))
    }

    /// Somebody was faster, or a precondition does not hold.
    pub fn conflict(kind: &Kind, name: &str, why: &str) -> Self {
        let message = format!("Operation cannot be fulfilled on {} {name:?}: {why}", kind.qualified());
        Self::new(409, "Conflict", message, details(kind, name))
    }

    /// The object changed since it was read.
    pub fn modified(kind: &Kind, name: &str) -> Self {
        Self::conflict(
            kind,
            name,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    /// A precondition of a delete does not hold: the API server names the kind here, not the resource.
    pub fn precondition(kind: &Kind, name: &str, why: &str) -> Self {
        let mut details = details(kind, name);
        details.insert("kind".into(), kind.kind.clone().into());
        let of =
            if kind.group.is_empty() { kind.kind.clone() } else { format!("{}.{}", kind.kind, kind.group) };
        let message = format!("Operation cannot be fulfilled on {of} {name:?}: {why}");
        Self::new(409, "Conflict", message, details)
    }

    /// The object breaks rules. `kind_name` is the kind, or the resource where the API server says so.
    pub fn invalid(kind: &Kind, kind_name: &str, name: &str, faults: &[Fault]) -> Self {
        Self::invalid_as(&kind.group, kind_name, name, faults)
    }

    /// As [`Self::invalid`], of any group.
    pub fn invalid_as(group: &str, kind_name: &str, name: &str, faults: &[Fault]) -> Self {
        let mut details = Map::new();
        for (field, text) in [("name", name), ("group", group), ("kind", kind_name)] {
            if !text.is_empty() {
                details.insert(field.into(), text.into());
            }
        }
        let causes: Vec<Value> = faults
            .iter()
            .map(|f| json!({"reason": f.reason, "message": f.message, "field": f.field}))
            .collect();
        details.insert("causes".into(), causes.into());
        let texts: Vec<String> = faults.iter().map(Fault::text).collect();
        let text = match texts.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        let of = if group.is_empty() { kind_name.to_string() } else { format!("{kind_name}.{group}") };
        Self::new(422, "Invalid", format!("{of} {name:?} is invalid: {text}"), details)
    }

    /// The options of a request are wrong.
    pub fn invalid_options(options: &str, fault: &Fault) -> Self {
        let cause = json!({"reason": fault.reason, "message": fault.message, "field": fault.field});
        Self {
            code: 422,
            reason: "Invalid",
            message: format!("{options}.meta.k8s.io \"\" is invalid: {}", fault.text()),
            details: json!({"group": "meta.k8s.io", "kind": options, "causes": [cause]}),
        }
    }

    /// The request itself is wrong.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { code: 400, reason: "BadRequest", message: message.into(), details: Value::Null }
    }

    /// What was asked for is no longer known.
    pub fn expired(message: impl Into<String>) -> Self {
        Self { code: 410, reason: "Expired", message: message.into(), details: Value::Null }
    }

    /// Not allowed, as an authorizer says it.
    pub fn unauthorized_to(who: &str, verb: &str, kind: &Kind, namespace: &str, name: &str) -> Self {
        let place = if namespace.is_empty() {
            "at the cluster scope".to_string()
        } else {
            format!("in the namespace {namespace:?}")
        };
        let subject =
            if name.is_empty() { kind.qualified() } else { format!("{} {name:?}", kind.qualified()) };
        let message = format!(
            "{subject} is forbidden: User {who:?} cannot {verb} resource {:?} in API group {:?} {place}",
            kind.plural, kind.group
        );
        let mut details = details(kind, name);
        if name.is_empty() {
            details.remove("name");
        }
        Self::new(403, "Forbidden", message, details)
    }

    /// The namespace is on its way out.
    pub fn terminating(kind: &Kind, name: &str, namespace: &str) -> Self {
        let mut details = details(kind, name);
        details.insert(
            "causes".into(),
            json!([{"reason": "NamespaceTerminating", "field": "metadata.namespace",
                "message": format!("namespace {namespace} is being terminated")}]),
        );
        let message = format!(
            "{} {name:?} is forbidden: unable to create new content in namespace {namespace} because it is being terminated",
            kind.qualified()
        );
        Self::new(403, "Forbidden", message, details)
    }

    /// A failure without a reason, as a server has when something unforeseen happens.
    pub fn internal(message: impl Into<String>) -> Self {
        Self { code: 500, reason: "", message: message.into(), details: Value::Null }
    }

    /// The verb is not served here.
    pub fn method_not_allowed() -> Self {
        Self {
            code: 405,
            reason: "MethodNotAllowed",
            message: "the server does not allow this method on the requested resource".into(),
            details: json!({}),
        }
    }

    /// The Status object.
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// What a DELETE that removed the object at once answers.
pub(crate) fn deleted(kind: &Kind, name: &str, uid: &Value) -> Value {
    let mut details = details(kind, name);
    details.insert("uid".into(), uid.clone());
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details})
}
