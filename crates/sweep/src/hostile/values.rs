//! Values that a field should not have, by what its schema says. Pure.

use super::{
    path::Path,
    schema::{Field, sample},
    strings,
};
use serde_json::{Map, Value, json};

/// What to do with a field.
#[derive(Clone, Debug, PartialEq)]
pub enum Do {
    /// It becomes this.
    Set(Value),
    /// It goes.
    Remove,
}

/// A word for what is wrong, and what to do.
pub type Try = (&'static str, Do);

/// All that is tried with a field. `present`: what the base has there. `most`: how many of the texts that fit everywhere.
pub fn tries(field: &Field<'_>, present: Option<&Value>, most: usize) -> Vec<Try> {
    let schema = field.schema;
    let mut all: Vec<Try> = Vec::new();
    if present.is_some() {
        all.push(("removed", Do::Remove));
    }
    let values = if schema["enum"].is_array() {
        choices(schema)
    } else if schema["x-kubernetes-int-or-string"] == true {
        let mut values = texts(field, most);
        values.extend([("number", json!(2)), ("number", json!(-1)), ("wrong-type", json!({"a": 1}))]);
        values.push(("wrong-type", json!(1.5)));
        values
    } else {
        match schema["type"].as_str() {
            Some("integer") => integers(field, present),
            Some("boolean") => vec![
                ("other", json!(true)),
                ("other", json!(false)),
                ("wrong-type", json!("yes")),
                ("wrong-type", json!(1)),
            ],
            Some("array") => lists(field, present),
            Some("object") if schema["additionalProperties"].is_object() => maps(field, present),
            Some("object") => objects(field, present),
            _ => {
                let mut values = texts(field, most);
                values.extend([("wrong-type", json!(7)), ("wrong-type", json!(["a"]))]);
                values
            }
        }
    };
    all.extend(values.into_iter().map(|(word, value)| (word, Do::Set(value))));
    // What is there already is no change.
    all.retain(|(_, what)| !matches!(what, Do::Set(value) if Some(value) == present));
    all
}

fn choices(schema: &Value) -> Vec<(&'static str, Value)> {
    let choices: Vec<Value> = schema["enum"].as_array().cloned().unwrap_or_default();
    let lower = choices.first().and_then(Value::as_str).map(str::to_lowercase);
    let mut all: Vec<_> = choices.into_iter().map(|c| ("choice", c)).collect();
    all.extend([("foreign", json!("Sometimes")), ("empty", json!("")), ("wrong-type", json!(7))]);
    all.extend(lower.map(|text| ("case", json!(text))));
    all
}

fn integers(field: &Field<'_>, present: Option<&Value>) -> Vec<(&'static str, Value)> {
    let schema = field.schema;
    let mut all = Vec::new();
    if let Some(minimum) = schema["minimum"].as_i64() {
        all.extend([("minimum", json!(minimum)), ("below-minimum", json!(minimum - 1))]);
    }
    if let Some(maximum) = schema["maximum"].as_i64() {
        all.extend([("maximum", json!(maximum)), ("above-maximum", json!(maximum + 1))]);
    }
    if field.path.to_string().ends_with("walSegmentSizeMB") {
        all.extend([1, 3, 1024, 2048].map(|n| ("power-of-two", json!(n))));
    }
    if let Some(now) = present.and_then(Value::as_i64) {
        all.extend([("one-less", json!(now - 1)), ("one-more", json!(now + 1))]);
    }
    all.extend([
        ("zero", json!(0)),
        ("negative", json!(-1)),
        ("above-32-bits", json!(2_147_483_648_i64)),
        ("below-32-bits", json!(-2_147_483_649_i64)),
        ("largest", json!(i64::MAX)),
        ("above-64-bits", json!(9_223_372_036_854_775_808_u64)),
        ("above-64-bits", json!(1e30)),
        ("fraction", json!(1.5)),
        ("wrong-type", json!("3")),
        ("wrong-type", json!([3])),
    ]);
    all
}

fn texts(field: &Field<'_>, most: usize) -> Vec<(&'static str, Value)> {
    let schema = field.schema;
    let mut all = vec![("empty", String::new())];
    let length = |name: &str| schema[name].as_u64().and_then(|n| usize::try_from(n).ok());
    if let Some(longest) = length("maxLength") {
        all.extend([("longest", filler(longest)), ("above-longest", filler(longest + 1))]);
    }
    if most > strings::FEW {
        all.extend([("long", filler(253)), ("long", filler(254))]);
    }
    all.push(("long", filler(1000)));
    all.extend(strings::hostile(&field.path.to_string(), most));
    all.into_iter().map(|(word, text)| (word, json!(text))).collect()
}

fn filler(length: usize) -> String {
    "a".repeat(length)
}

fn lists(field: &Field<'_>, present: Option<&Value>) -> Vec<(&'static str, Value)> {
    let one = item(field);
    let mut all = vec![
        ("empty", json!([])),
        ("null-item", json!([null])),
        ("twice", json!([one, one])),
        ("wrong-type", json!({"a": 1})),
        ("wrong-type", json!("a")),
    ];
    if present.is_none() {
        all.insert(1, ("one", json!([one])));
    }
    if let Some(most) = field.schema["maxItems"].as_u64().and_then(|n| usize::try_from(n).ok()) {
        all.extend([
            ("most", Value::Array(vec![one.clone(); most])),
            ("above-most", Value::Array(vec![one; most + 1])),
        ]);
    }
    all
}

fn item(field: &Field<'_>) -> Value {
    let schema = &field.schema["items"];
    let one = sample(schema, &field.path.item(0));
    // An item of which nothing is required would be empty: its first texts make it one that means something.
    if one != json!({}) {
        return one;
    }
    let wanted = ["key", "operator", "effect"];
    let known = wanted.iter().filter(|name| schema["properties"][**name].is_object());
    let of = |name: &&str| {
        let path: Path = field.path.item(0).field(name);
        (name.to_string(), json!(strings::sample(&path.to_string())))
    };
    Value::Object(known.map(of).collect())
}

fn maps(field: &Field<'_>, present: Option<&Value>) -> Vec<(&'static str, Value)> {
    let path = field.path.to_string();
    let base: Map<String, Value> = present.and_then(Value::as_object).cloned().unwrap_or_default();
    let with = |keys: &mut dyn Iterator<Item = (String, Value)>| {
        let mut all = base.clone();
        all.extend(keys);
        Value::Object(all)
    };
    let one = |key: &str| json!(strings::sample(&field.path.field(key).to_string()));
    let mut all = vec![
        ("empty", json!({})),
        ("wrong-type", json!("a")),
        ("wrong-type", json!(["a"])),
        ("wrong-type", with(&mut [("note".into(), json!({"a": 1}))].into_iter())),
    ];
    if let Some(key) = strings::keys(&path).first() {
        all.push(("one", with(&mut [(key.to_string(), one(key))].into_iter())));
    }
    if let Some(most) = field.schema["maxProperties"].as_u64() {
        let fill = |count: u64| {
            let missing = usize::try_from(count).unwrap_or(0).saturating_sub(base.len());
            with(&mut (0..missing).map(|n| (format!("note{n:03}"), json!("1"))))
        };
        all.extend([("most", fill(most)), ("above-most", fill(most + 1))]);
    }
    for (word, key) in strings::hostile_keys(&path) {
        let value =
            if path.ends_with("requests") || path.ends_with("limits") { json!("1") } else { json!("on") };
        all.push((word, with(&mut [(key, value)].into_iter())));
    }
    all
}

fn objects(field: &Field<'_>, present: Option<&Value>) -> Vec<(&'static str, Value)> {
    let mut extended = present.cloned().unwrap_or_else(|| sample(field.schema, &field.path));
    extended["unknownField"] = json!(true);
    vec![
        ("empty", json!({})),
        ("unknown-field", extended),
        ("wrong-type", json!("a")),
        ("wrong-type", json!(["a"])),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hostile::schema;

    fn of(kind: &str, path: &str, present: Value) -> Vec<(String, Do)> {
        let spec = schema::spec(kind).unwrap();
        let fields = schema::fields(&spec);
        let field = fields.iter().find(|f| f.path.to_string() == path).unwrap();
        let present = (!present.is_null()).then_some(&present);
        tries(field, present, usize::MAX).into_iter().map(|(word, what)| (word.to_string(), what)).collect()
    }

    fn has(all: &[(String, Do)], word: &str, value: Value) -> bool {
        all.contains(&(word.into(), Do::Set(value)))
    }

    #[test]
    fn numbers_are_tried_at_their_bounds_and_one_beyond() {
        let all = of("Database", "spec.failover.ttlSeconds", Value::Null);
        assert!(has(&all, "minimum", json!(3)) && has(&all, "below-minimum", json!(2)));
        assert!(has(&all, "maximum", json!(60)) && has(&all, "above-maximum", json!(61)));
        assert!(has(&all, "above-64-bits", json!(1e30)) && has(&all, "wrong-type", json!("3")));
        assert!(!all.contains(&("removed".into(), Do::Remove)), "what is not there cannot be removed");
    }

    #[test]
    fn choices_are_all_tried_but_for_the_present_one() {
        let all = of("Database", "spec.durability.mode", json!("Preferred"));
        assert!(has(&all, "choice", json!("Required")) && !has(&all, "choice", json!("Preferred")));
        assert!(has(&all, "foreign", json!("Sometimes")) && has(&all, "case", json!("required")));
        assert!(all.contains(&("removed".into(), Do::Remove)));
    }

    #[test]
    fn lists_and_maps_are_emptied_overfilled_and_given_odd_members() {
        let all = of("Database", "spec.imagePullSecrets", Value::Null);
        let above = json!(vec![json!({"name": "sample"}); 17]);
        assert!(has(&all, "above-most", above) && has(&all, "null-item", json!([null])));
        let all = of("Database", "spec.postgresql.parameters", json!({"work_mem": "8MB"}));
        assert!(has(&all, "managed", json!({"work_mem": "8MB", "fsync": "on"})));
        assert!(has(&all, "empty", json!({})));
    }

    #[test]
    fn texts_are_tried_at_their_lengths() {
        let all = of("Backup", "spec.databaseRef.name", json!("orders"));
        let long = |n: usize| json!("a".repeat(n));
        assert!(has(&all, "longest", long(253)) && has(&all, "above-longest", long(254)));
        assert!(has(&all, "long", long(1000)) && has(&all, "empty", json!("")));
        assert!(has(&all, "existing", json!("ledger")) && has(&all, "missing", json!("nowhere")));
    }
}
