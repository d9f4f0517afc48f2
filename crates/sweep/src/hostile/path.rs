//! Where in an object something is, and how one object becomes another by a merge patch. Pure.

use serde_json::{Map, Value};
use std::fmt;

/// One step into an object.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// A field of an object, or a key of a map.
    Field(String),
    /// An item of a list.
    Item(usize),
}

/// A place in an object, written as the API server writes it: `spec.placement.tolerations[0].key`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Path(Vec<Step>);

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, step) in self.0.iter().enumerate() {
            match step {
                Step::Field(name) if index == 0 => f.write_str(name)?,
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Item(item) => write!(f, "[{item}]")?,
            }
        }
        Ok(())
    }
}

impl Path {
    /// A path of fields alone, given with dots.
    pub fn fields(text: &str) -> Self {
        Self(text.split('.').map(|name| Step::Field(name.into())).collect())
    }

    /// The field or key `name` below this.
    pub fn field(&self, name: &str) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Field(name.into()));
        Self(steps)
    }

    /// The item below this.
    pub fn item(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Item(index));
        Self(steps)
    }

    /// The steps, from the outside in.
    pub fn steps(&self) -> &[Step] {
        &self.0
    }

    /// What is there.
    pub fn get<'a>(&self, object: &'a Value) -> Option<&'a Value> {
        self.0.iter().try_fold(object, |value, step| match step {
            Step::Field(name) => value.get(name),
            Step::Item(index) => value.get(index),
        })
    }

    /// Puts something there. Objects and lists on the way are made.
    pub fn set(&self, object: &mut Value, value: Value) {
        let mut at = object;
        for step in &self.0 {
            at = match step {
                Step::Field(name) => {
                    if !at.is_object() {
                        *at = Value::Object(Map::new());
                    }
                    &mut at[name.as_str()]
                }
                Step::Item(index) => {
                    if !at.is_array() {
                        *at = Value::Array(Vec::new());
                    }
                    if let Value::Array(items) = at
                        && items.len() <= *index
                    {
                        items.resize(index + 1, Value::Null);
                    }
                    &mut at[*index]
                }
            };
        }
        *at = value;
    }

    /// Takes away what is there.
    pub fn remove(&self, object: &mut Value) {
        let Some((last, above)) = self.0.split_last() else { return };
        let parent = above.iter().try_fold(object, |value, step| match step {
            Step::Field(name) => value.get_mut(name),
            Step::Item(index) => value.get_mut(index),
        });
        match (parent, last) {
            (Some(Value::Object(fields)), Step::Field(name)) => {
                fields.remove(name);
            }
            (Some(Value::Array(items)), Step::Item(index)) if *index < items.len() => {
                items.remove(*index);
            }
            _ => {}
        }
    }
}

/// The merge patch (RFC 7386) that makes `to` of `from`; none when they are equal. Lists change as a whole.
pub fn difference(from: &Value, to: &Value) -> Option<Value> {
    if from == to {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (from, to) else { return Some(to.clone()) };
    let gone = old.keys().filter(|name| !new.contains_key(*name)).map(|name| (name.clone(), Value::Null));
    let changed = new.iter().filter_map(|(name, value)| {
        let before = old.get(name).unwrap_or(&Value::Null);
        Some((name.clone(), difference(before, value)?))
    });
    Some(Value::Object(gone.chain(changed).collect()))
}

/// What a merge patch makes of an object.
pub fn merged(object: &Value, patch: &Value) -> Value {
    let Value::Object(changes) = patch else { return patch.clone() };
    let mut fields = object.as_object().cloned().unwrap_or_default();
    for (name, change) in changes {
        if change.is_null() {
            fields.remove(name);
        } else {
            let before = fields.get(name).unwrap_or(&Value::Null);
            let after = merged(before, change);
            fields.insert(name.clone(), after);
        }
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_path_reads_as_the_api_server_writes_it_and_finds_its_place() {
        let path = Path::fields("spec.taints").item(1).field("key");
        assert_eq!(path.to_string(), "spec.taints[1].key");
        let mut object = json!({"spec": {"taints": [{"key": "a"}, {"key": "b"}]}});
        assert_eq!(path.get(&object), Some(&json!("b")));
        path.set(&mut object, json!(7));
        Path::fields("spec.taints").item(0).remove(&mut object);
        assert_eq!(object, json!({"spec": {"taints": [{"key": 7}]}}));
        Path::fields("spec.deep.er").set(&mut object, json!(1));
        assert_eq!(object["spec"]["deep"], json!({"er": 1}));
    }

    #[test]
    fn a_difference_leads_there_and_back() {
        let one = json!({"spec": {"a": {"b": 1, "c": [1, 2]}, "d": "x", "m": {"k": "v"}}});
        let two = json!({"spec": {"a": {"c": [2]}, "d": {"x": 1}, "m": {}}});
        let (there, back) = (difference(&one, &two).unwrap(), difference(&two, &one).unwrap());
        assert_eq!((merged(&one, &there), merged(&two, &back)), (two.clone(), one.clone()));
        assert_eq!(there["spec"]["m"], json!({"k": null}), "an empty map has to be emptied");
        assert_eq!(difference(&one, &one), None);
    }
}
