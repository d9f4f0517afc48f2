//! All changes, from the schemas and the bases. Pure, and always in the same order.

use super::{
    bases,
    change::{Back, Change, Target, shown},
    combos, metadata,
    path::{Path, difference, merged},
    schema::{self, Field, place},
    strings,
    values::{Do, tries},
};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// All changes of all kinds. Errors: a definition cannot be read.
pub fn all() -> Result<Vec<Change>, String> {
    let mut all = Vec::new();
    for kind in schema::kinds() {
        all.extend(of(kind)?);
    }
    Ok(all)
}

/// How many changes there are of each kind.
pub fn count(changes: &[Change]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for change in changes {
        *counts.entry(change.kind).or_insert(0) += 1;
    }
    counts
}

/// All changes of a kind. Errors: its definition cannot be read.
pub fn of(kind: &'static str) -> Result<Vec<Change>, String> {
    let spec = schema::spec(kind)?;
    let maker = Maker { kind, spec: &spec, base: bases::base(kind), made: bases::made(kind) };
    let mut all = Vec::new();
    for field in schema::fields(&spec) {
        all.extend(maker.of_field(&field));
    }
    let root = Field { path: Path::fields("spec"), schema: &spec, immutable: false };
    let parts = schema::fields(&spec);
    for field in std::iter::once(&root).chain(&parts) {
        for (path, label, value) in combos::exclusive(field) {
            all.extend(maker.exclusive(field, &path, label, &value));
        }
    }
    for (path, word, patch) in combos::combined(kind) {
        let there = merged(&maker.base, &json!({"spec": patch}));
        all.extend(maker.patched(path.into(), word.into(), &there));
    }
    all.extend(maker.unknown());
    let name = maker.base["metadata"]["name"].as_str().unwrap_or_default();
    all.extend(metadata::of_base(kind, name));
    if let Some(made) = maker.made.first() {
        all.extend(metadata::names(kind, made));
    }
    if kind == "Database" {
        all.extend(metadata::of_children(name));
    }
    Ok(distinct(all))
}

struct Maker<'a> {
    kind: &'static str,
    spec: &'a Value,
    base: Value,
    made: Vec<Value>,
}

impl Maker<'_> {
    fn of_field(&self, field: &Field<'_>) -> Vec<Change> {
        let path = field.path.to_string();
        // What is the same type in several places is tried in full in the first of them.
        let copied = path.contains(".overrides.") || path.starts_with("spec.template.");
        let most = if copied { strings::FEW } else { usize::MAX };
        let make = field.immutable || self.is_elsewhere(&field.path);
        let start = if make { self.maker_of(&field.path) } else { &self.base };
        let (mut all, mut words) = (Vec::new(), BTreeSet::new());
        for (word, what) in tries(field, field.path.get(start), most) {
            if !words.insert(word) && copied {
                continue;
            }
            let mut there = start.clone();
            let label = match &what {
                Do::Remove => {
                    field.path.remove(&mut there);
                    word.to_string()
                }
                Do::Set(value) => {
                    place(self.spec, &mut there, &field.path, value.clone());
                    format!("{word} {}", shown(value))
                }
            };
            if make {
                all.push(self.create(path.clone(), label, there));
            } else {
                all.extend(self.patched(path.clone(), label, &there));
            }
        }
        if field.immutable {
            all.extend(self.later(field));
        }
        all
    }

    /// Whether a field lies in an alternative that the base has not chosen: such an object is made anew.
    fn is_elsewhere(&self, path: &Path) -> bool {
        use super::path::Step;
        let (mut schema, mut here) = (self.spec, Path::fields("spec"));
        for step in path.steps().iter().skip(1) {
            match step {
                Step::Field(name) => {
                    let other = schema::alternatives(schema).contains(name);
                    here = here.field(name);
                    if other && here.get(&self.base).is_none() {
                        return true;
                    }
                    let known = schema["properties"].get(name);
                    schema = known.unwrap_or(&schema["additionalProperties"]);
                }
                Step::Item(index) => {
                    here = here.item(*index);
                    schema = &schema["items"];
                }
            }
        }
        false
    }

    /// The object to make that has most of a path.
    fn maker_of(&self, path: &Path) -> &Value {
        if path.to_string().starts_with("spec.newDatabase") {
            return self.made.last().unwrap_or(&self.base);
        }
        let depth = |object: &Value| {
            let mut here = Path::default();
            let there = path.steps().iter().take_while(|step| {
                here = match step {
                    super::path::Step::Field(name) => here.field(name),
                    super::path::Step::Item(index) => here.item(*index),
                };
                here.get(object).is_some()
            });
            there.count()
        };
        let mut best = &self.made[0];
        for one in &self.made[1..] {
            if depth(one) > depth(best) {
                best = one;
            }
        }
        best
    }

    fn create(&self, path: String, label: String, object: Value) -> Change {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let target = Target::ours(self.kind, name);
        Change { kind: self.kind, path, label, target, change: object, back: Back::Delete }
    }

    fn patched(&self, path: String, label: String, there: &Value) -> Option<Change> {
        let name = self.base["metadata"]["name"].as_str().unwrap_or_default();
        Some(Change {
            kind: self.kind,
            path,
            label,
            target: Target::ours(self.kind, name),
            change: difference(&self.base, there)?,
            back: Back::Patch(difference(there, &self.base)?),
        })
    }

    /// A field that is fixed, changed all the same.
    fn later(&self, field: &Field<'_>) -> Option<Change> {
        let present = field.path.get(&self.base);
        let taken =
            tries(field, present, usize::MAX).into_iter().find_map(|(word, what)| match (word, what) {
                ("removed" | "empty" | "wrong-type" | "above-longest", _) | (_, Do::Remove) => None,
                (_, Do::Set(value)) => Some(value),
            })?;
        let mut there = self.base.clone();
        place(self.spec, &mut there, &field.path, taken.clone());
        self.patched(field.path.to_string(), format!("changed-later {}", shown(&taken)), &there)
    }

    fn exclusive(&self, field: &Field<'_>, path: &Path, label: String, value: &Value) -> Option<Change> {
        let patch = |start: &Value| {
            let mut there = start.clone();
            if path.get(&there).is_none() {
                place(self.spec, &mut there, path, json!({}));
            }
            let now = merged(path.get(&there).unwrap_or(&Value::Null), value);
            path.set(&mut there, now);
            there
        };
        if field.immutable || self.kind == "Restore" {
            let start = self.maker_of(path);
            return Some(self.create(path.to_string(), label, patch(start)));
        }
        self.patched(path.to_string(), label, &patch(&self.base))
    }

    fn unknown(&self) -> Vec<Change> {
        let odd = [
            ("spec.unknownField", json!(true)),
            ("spec.Instances", json!(1)),
            ("spec.database_ref", json!({"name": "orders"})),
        ];
        let mut all = Vec::new();
        for (path, value) in odd {
            let mut there = self.base.clone();
            Path::fields(path).set(&mut there, value.clone());
            all.extend(self.patched(path.into(), format!("unknown-field {}", shown(&value)), &there));
        }
        // A whole object in place of the spec, and none at all.
        let mut none = self.made[0].clone();
        none["spec"] = json!({});
        all.push(self.create("spec".into(), "empty {}".into(), none));
        all
    }
}

/// Each change once, and each label once.
fn distinct(changes: Vec<Change>) -> Vec<Change> {
    let (mut seen, mut named) = (BTreeSet::new(), BTreeMap::new());
    let mut all = Vec::new();
    for mut change in changes {
        let what = format!("{:?} {} {}", change.target, change.makes(), change.change);
        if !seen.insert(what) {
            continue;
        }
        let times = named.entry(change.to_string()).or_insert(0);
        *times += 1;
        if *times > 1 {
            change.label = format!("{} #{times}", change.label);
        }
        all.push(change);
    }
    all
}
