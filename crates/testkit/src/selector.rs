//! Label and field selectors. Pure.

use crate::kinds::Kind;
use serde_json::Value;

/// A parsed pair of selectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Selector {
    labels: Vec<LabelRule>,
    fields: Vec<(String, bool, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelRule {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
    Above(String, i64),
    Below(String, i64),
}

impl Selector {
    /// Errors: what is wrong, for people.
    pub fn parse(kind: &Kind, labels: &str, fields: &str) -> Result<Self, String> {
        let labels = split(labels).into_iter().map(|rule| label_rule(&rule)).collect::<Result<_, _>>()?;
        let mut rules = Vec::new();
        for rule in fields.split(',').filter(|r| !r.is_empty()) {
            let (field, equal, value) = if let Some((f, v)) = rule.split_once("!=") {
                (f, false, v)
            } else if let Some((f, v)) = rule.split_once("==").or_else(|| rule.split_once('=')) {
                (f, true, v)
            } else {
                return Err(format!("invalid selector: '{fields}'; can't understand '{rule}'"));
            };
            let known =
                ["metadata.name", "metadata.namespace"].contains(&field) || kind.selectable.contains(&field);
            if !known {
                return Err(unknown(kind, field));
            }
            rules.push((field.to_string(), equal, value.to_string()));
        }
        Ok(Self { labels, fields: rules })
    }

    pub fn is_empty(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The only name that it selects, if there is one.
    pub fn name(&self) -> Option<&str> {
        let by_name = |(field, equal, _): &&(String, bool, String)| field == "metadata.name" && *equal;
        self.fields.iter().find(by_name).map(|(_, _, name)| name.as_str())
    }

    pub fn matches(&self, object: &Value) -> bool {
        self.labels.iter().all(|rule| rule.matches(object))
            && self.fields.iter().all(|(field, equal, value)| (field_of(object, field) == *value) == *equal)
    }
}

/// How a kind says that it does not know a field: each has its own words.
fn unknown(kind: &Kind, field: &str) -> String {
    let own = ["Pod", "Node", "Event", "Namespace", "Secret", "Service"].contains(&kind.kind.as_str());
    if kind.kind == "Job" {
        format!("field label {field:?} not supported for Job")
    } else if own || kind.is_custom() {
        format!("field label not supported: {field}")
    } else {
        format!("{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
    }
}

/// The value of a selectable field: empty when it is not there.
fn field_of(object: &Value, field: &str) -> String {
    // Events name their reporter in two places.
    let field = if field == "source" { "source.component" } else { field };
    let mut value = object;
    for step in field.split('.') {
        value = &value[step];
    }
    match value {
        Value::String(text) => text.clone(),
        Value::Null if field == "status.successful" => "0".into(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Splits at commas outside of parentheses.
fn split(selector: &str) -> Vec<String> {
    let (mut parts, mut depth, mut part) = (Vec::new(), 0_u32, String::new());
    for c in selector.chars() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(std::mem::take(&mut part));
                continue;
            }
            _ => {}
        }
        part.push(c);
    }
    parts.push(part);
    parts.into_iter().map(|p| p.trim().to_string()).filter(|p| !p.is_empty()).collect()
}

fn label_rule(rule: &str) -> Result<LabelRule, String> {
    let wrong = || {
        // Said as the parser of Kubernetes does where it stumbles first.
        let mut words = rule.split_whitespace().skip(1);
        match (words.next(), words.next()) {
            (Some("in" | "notin"), next) if !next.unwrap_or_default().starts_with('(') => {
                format!("unable to parse requirement: found '{}' expected: '('", next.unwrap_or_default())
            }
            (Some(other), _) => format!(
                "unable to parse requirement: found '{other}', expected: in, notin, =, ==, !=, gt, lt"
            ),
            _ => format!("unable to parse requirement: {rule:?}"),
        }
    };
    let list = |text: &str| -> Result<Vec<String>, String> {
        let inner = text.trim().strip_prefix('(').and_then(|t| t.strip_suffix(')')).ok_or_else(wrong)?;
        Ok(inner.split(',').map(|v| v.trim().to_string()).collect())
    };
    let one = |(key, value): (&str, &str)| (key.trim().to_string(), value.trim().to_string());
    if let Some((key, values)) = rule.split_once(" notin ") {
        return Ok(LabelRule::NotIn(key.trim().into(), list(values)?));
    }
    if let Some((key, values)) = rule.split_once(" in ") {
        return Ok(LabelRule::In(key.trim().into(), list(values)?));
    }
    if let Some(pair) = rule.split_once("!=") {
        let (key, value) = one(pair);
        return Ok(LabelRule::NotIn(key, vec![value]));
    }
    if let Some(pair) = rule.split_once("==").or_else(|| rule.split_once('=')) {
        let (key, value) = one(pair);
        return Ok(LabelRule::In(key, vec![value]));
    }
    if let Some((key, value)) = rule.split_once('>') {
        return Ok(LabelRule::Above(key.trim().into(), value.trim().parse().map_err(|_| wrong())?));
    }
    if let Some((key, value)) = rule.split_once('<') {
        return Ok(LabelRule::Below(key.trim().into(), value.trim().parse().map_err(|_| wrong())?));
    }
    if let Some(key) = rule.strip_prefix('!') {
        return Ok(LabelRule::Absent(key.trim().into()));
    }
    if rule.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok(LabelRule::Exists(rule.into()))
}

impl LabelRule {
    fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let number = |key: &str| label(key).and_then(|v| v.parse::<i64>().ok());
        match self {
            Self::In(key, values) => label(key).is_some_and(|v| values.iter().any(|w| w == v)),
            // An absent label is not in any list.
            Self::NotIn(key, values) => label(key).is_none_or(|v| values.iter().all(|w| w != v)),
            Self::Exists(key) => label(key).is_some(),
            Self::Absent(key) => label(key).is_none(),
            Self::Above(key, bound) => number(key).is_some_and(|n| n > *bound),
            Self::Below(key, bound) => number(key).is_some_and(|n| n < *bound),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn matches(labels: &str, fields: &str) -> bool {
        let kinds = crate::kinds::builtin();
        let pods = kinds.iter().find(|k| k.kind == "Pod").unwrap();
        let object = json!({"metadata": {"name": "p", "labels": {"app": "shop", "tier": "2"}},
            "status": {"phase": "Running"}});
        Selector::parse(pods, labels, fields).unwrap().matches(&object)
    }

    #[test]
    fn labels_are_selected_as_kubernetes_does() {
        for yes in [
            "",
            "app=shop",
            "app==shop",
            "app in (x, shop)",
            "app,tier",
            "!gone",
            "gone!=x",
            "gone notin (x)",
            "tier>1",
            "tier<3",
        ] {
            assert!(matches(yes, ""), "{yes}");
        }
        for no in ["app=x", "app!=shop", "gone=x", "!app", "gone", "gone in (x)", "tier>2", "app>1"] {
            assert!(!matches(no, ""), "{no}");
        }
    }

    #[test]
    fn fields_are_selected_where_the_kind_allows() {
        assert!(matches("", "metadata.name=p,status.phase!=Pending"));
        assert!(!matches("", "status.phase=Pending"));
        assert!(matches("", "spec.nodeName="));
        let kinds = crate::kinds::builtin();
        let maps = kinds.iter().find(|k| k.kind == "ConfigMap").unwrap();
        assert_eq!(
            Selector::parse(maps, "", "status.phase=x").unwrap_err(),
            "\"status.phase\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
        );
    }
}
