//! What the server in memory deliberately does not model, and why: exactly this is left out of the comparison.
//!
//! Beside it, five things are not asked for (see `plan`): the mount of an account's token, which has a generated name and is
//! nothing to a server that runs no pods; finalizers of claims, which a controller gives back whenever it likes; how
//! strictly a merge patch that is no object is to be read, which decides only in which words it is refused; a Service without
//! any name, which is refused for its address first; and what becomes of a dependent that does not block its owner, which is deleted in the
//! foreground and held by another finalizer: in Kubernetes' collector that is a race. Whose writes are the Kubernetes
//! controllers' is kept out by a policy (see `ground`): of them only the collectors are modelled.

use regex::Regex;
use std::sync::OnceLock;

const UNKNOWN: &str = "field not declared in schema";

fn structures() -> Option<&'static Regex> {
    static STRUCTURES: OnceLock<Option<Regex>> = OnceLock::new();
    STRUCTURES
        .get_or_init(|| Regex::new(r"(?s)(Invalid|Unsupported) value: (\{.*\}|\[.*\]|map\[.*\]|null): ").ok())
        .as_ref()
}

/// As [`said`], of a cause that names a field.
pub fn said_of(field: &str, message: &str) -> Option<String> {
    // A patch after which the object cannot be read: the API server quotes the object, and Go's decoder.
    if field == "patch" && !message.contains("strict decoding error") {
        return Some("what the patch makes cannot be read".into());
    }
    said(message)
}

/// Whether two refusals of what does not fit its schema are the same but for the faults that each names: an unknown field ends
/// the look at its object, and in which order the API server looks at the fields of one is up to Go's maps.
pub fn first_of_several(real: &str, fake: &str) -> bool {
    let unfit = |message: &str| message.starts_with("failed to create typed patch object");
    if !unfit(real) || !unfit(fake) || (real.contains("errors:") && fake.contains("errors:")) {
        return false;
    }
    let named = real.rsplit(": .").next().unwrap_or_default();
    let others = fake.contains("errors:") || !fake.ends_with(UNKNOWN);
    real.ends_with(UNKNOWN) && others && (fake.contains(named) || !fake.contains(UNKNOWN))
}

/// The part of a refusal's message, or of a cause's, that is compared; `None`: all of it.
pub fn said(message: &str) -> Option<String> {
    // What a body has that it should not is named; the body itself, which the API server quotes, is not repeated.
    if let Some((_, fault)) = message.split_once("strict decoding error: ") {
        return Some(fault.into());
    }
    // What is applied is held against the schema in the words of another library, many faults at once. One field that is
    // unknown is named here too.
    let one_unknown = message.ends_with(UNKNOWN) && !message.contains("errors:");
    if message.starts_with("failed to create typed patch object") && !one_unknown
        || message.starts_with("failed to convert new object")
    {
        return Some("it does not fit the schema".into());
    }
    // The same words about what is stored.
    if let Some((before, _)) = message.split_once(" to smd typed: ") {
        return Some(before.into());
    }
    // A body that cannot be read: how that is said depends on the decoder, which names Go's types and quotes the body.
    let unreadable = message.starts_with("the object provided is unrecognized")
        || message.contains("json parse error")
        || message.starts_with("error decoding patch")
        || message == "Invalid JSON Patch"
        || message.contains("cannot be handled as a ");
    if unreadable {
        return Some("the body cannot be read".into());
    }
    // Where an object is stored.
    if let Some((before, after)) = message.split_once("Key: /")
        && let Some((_, after)) = after.split_once(',')
    {
        return Some(format!("{before}{after}"));
    }
    // Each server allots ports of its own.
    if let Some((before, _)) = message.split_once("duplicate nodePort: ") {
        return Some(format!("{before}duplicate nodePort"));
    }
    // A number of replicas that is none is shown as Go shows it.
    if let Some((before, _)) = message.split_once(" accessor error: ") {
        return Some(before.into());
    }
    // What changed in a spec that may not change is shown as a difference of Go's internal types.
    if let Some((before, _)) = message.split_once('\n')
        && before.contains("Forbidden: ")
    {
        return Some(before.into());
    }
    // So are whole structures.
    let structures = structures()?;
    let masked = || structures.replace_all(message, "$1 value: <structure>: ").into_owned();
    structures.is_match(message).then(masked)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_modelled_is_left_out() {
        assert_eq!(said("spec.size: Invalid value: 5: too big"), None);
        assert_eq!(
            said("Pod in version \"v1\" cannot be handled as a Pod: json: cannot unmarshal").as_deref(),
            Some("the body cannot be read")
        );
        assert_eq!(
            said("x cannot be handled as a X: strict decoding error: unknown field \"a\"").as_deref(),
            Some("unknown field \"a\"")
        );
        let unknown =
            "failed to create typed patch object (/a; v1, Kind=X): .b: field not declared in schema";
        assert_eq!(said(unknown), None);
        let prefix = "failed to create typed patch object (/a; v1, Kind=X)";
        assert!(first_of_several(
            unknown,
            &format!("{prefix}: errors:\n  .b: {UNKNOWN}\n  .c: expected string")
        ));
        assert!(!first_of_several(
            unknown,
            &format!("{prefix}: errors:\n  .d: {UNKNOWN}\n  .c: expected string")
        ));
        assert!(!first_of_several(unknown, &format!("{prefix}: .d: {UNKNOWN}")));
        assert_eq!(said("Invalid value: {\"A\":1}: no").as_deref(), Some("Invalid value: <structure>: no"));
    }
}
