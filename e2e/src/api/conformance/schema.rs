//! Values from a schema: at its bounds, beyond them, of other types.

use super::dice::Dice;
use serde_json::{Map, Value, json};

/// Texts that patterns and rules of the project's kinds tell apart.
const TEXTS: [&str; 34] = [
    "",
    "a",
    "A",
    "app",
    "orders",
    "a-b",
    "-a",
    "a_b",
    "a.b",
    "1Gi",
    "2Gi",
    "100Mi",
    "1.5Gi",
    "0",
    "-1",
    "10",
    "17",
    "18",
    "16",
    "30 2 * * *",
    "* * * *",
    "@daily",
    "@never",
    "Europe/Paris",
    "Nowhere",
    "https://s3.example",
    "ftp://x",
    "/",
    "/prod",
    "a/../b",
    "0/5000060",
    "2020-11-21T09:13:04Z",
    "2020-11-21",
    "registry.example/postgres:17",
];

/// A change somewhere below `part` of an object: a path, and a value that fits the schema there, or nearly.
pub fn edit(dice: &mut Dice, schema: &Value, part: &str) -> (Vec<String>, Value) {
    let mut path = vec![part.to_string()];
    let mut at = &schema["properties"][part];
    loop {
        if dice.chance(2) {
            path.push("surprise".into());
            return (path, json!("unknown"));
        }
        let names: Vec<&String> = at["properties"].as_object().into_iter().flat_map(Map::keys).collect();
        // Mostly to the leaves: a whole section at once is refused for too many reasons.
        if names.is_empty() || (path.len() > 1 && dice.chance(25)) {
            break;
        }
        let name = *dice.pick(&names);
        path.push(name.clone());
        at = &at["properties"][name.as_str()];
    }
    if at["additionalProperties"].is_object() && dice.chance(60) {
        path.push(text(dice).into());
        at = &at["additionalProperties"];
    }
    let value = if dice.chance(12) { Value::Null } else { value(dice, at, 0) };
    (path, value)
}

fn text(dice: &mut Dice) -> &'static str {
    dice.pick::<&str>(&TEXTS)
}

/// A value for a schema: mostly good.
fn value(dice: &mut Dice, schema: &Value, depth: usize) -> Value {
    if dice.chance(6) {
        return dice
            .pick(&[json!("text"), json!(7), json!(true), json!([]), json!({}), json!(1.5), json!(["x", 1])])
            .clone();
    }
    if let Some(values) = schema["enum"].as_array()
        && !dice.chance(10)
    {
        return dice.pick(values).clone();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return dice.pick(&[json!(1), json!("1Gi"), json!("500m"), json!(0), json!("much")]).clone();
    }
    match schema["type"].as_str().unwrap_or_default() {
        "integer" | "number" => number(dice, schema),
        "boolean" => json!(dice.chance(50)),
        "string" => string(dice, schema),
        "array" => {
            let count = if dice.chance(5) {
                schema["maxItems"].as_u64().unwrap_or(3).min(40) + 1
            } else {
                dice.below(4) as u64
            };
            (0..count).map(|_| value(dice, &schema["items"], depth + 1)).collect()
        }
        _ if depth > 4 => json!({}),
        _ => object(dice, schema, depth),
    }
}

fn object(dice: &mut Dice, schema: &Value, depth: usize) -> Value {
    let mut fields = Map::new();
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let wanted = if required.contains(&name.as_str()) { 93 } else { 35 };
        if dice.chance(wanted) {
            fields.insert(name.clone(), value(dice, property, depth + 1));
        }
    }
    if schema["additionalProperties"].is_object() {
        for _ in 0..dice.below(3) {
            fields.insert(text(dice).into(), value(dice, &schema["additionalProperties"], depth + 1));
        }
    }
    if dice.chance(3) {
        fields.insert("surprise".into(), json!({"a": 1}));
    }
    Value::Object(fields)
}

fn number(dice: &mut Dice, schema: &Value) -> Value {
    let least = schema["minimum"].as_i64().unwrap_or(0);
    let most = schema["maximum"].as_i64().unwrap_or(100_000);
    let inner = least + i64::try_from(dice.below(5)).unwrap_or(0);
    let value = dice.weighted(&[
        (4, least),
        (4, most),
        (8, inner.min(most)),
        (1, least - 1),
        (1, most + 1),
        (1, i64::from(i32::MAX) + 1),
    ]);
    json!(value)
}

fn string(dice: &mut Dice, schema: &Value) -> Value {
    if schema["format"] == "date-time" {
        let times = [
            "2020-11-21T09:13:04Z",
            "2020-11-21T10:13:04.123456+01:00",
            "2020-11-21T09:13:04.5Z",
            "yesterday",
            "2020-11-21",
        ];
        return dice.pick(&times).to_string().into();
    }
    if let Some(most) = schema["maxLength"].as_u64().filter(|most| *most < 2000)
        && dice.chance(8)
    {
        let length = usize::try_from(most).unwrap_or(1) + dice.below(2);
        return "x".repeat(length).into();
    }
    text(dice).into()
}
