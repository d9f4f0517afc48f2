//! Makes sequences of requests from seeds.

mod ends;
mod odd;
mod reads;
mod writes;

use super::{
    USERS,
    dice::Dice,
    kinds::{self, CUSTOM, Kind},
    steps::Step,
};
use odd::bad_metadata;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;

/// Names of objects.
const NAMES: [&str; 3] = ["one", "two", "three"];
/// The finalizer that holds an object.
const HOLD: &str = "example.com/hold";
/// The object that owners are made of.
pub const ANCHOR: &str = "anchor";

/// A sequence of requests.
pub struct Plan {
    /// The kinds that it is about.
    pub kinds: Vec<usize>,
    /// The requests.
    pub steps: Vec<Step>,
}

impl Plan {
    /// Whether the garbage collector may have something to do.
    pub fn collects(&self) -> bool {
        self.steps.iter().any(|step| {
            let told = step.body.to_string();
            ["ownerReferences", "oreground", "rphan"].iter().any(|word| told.contains(word))
        })
    }
}

/// The sequence of a seed. `custom`: about the project's kinds, and now and then a built-in one.
pub fn plan(seed: u64, custom: bool) -> Plan {
    let mut dice = Dice::new(seed.wrapping_mul(2).wrapping_add(u64::from(custom)));
    let all = kinds::all().len();
    let mut chosen = Vec::new();
    let count = 1 + dice.below(3);
    while chosen.len() < count {
        let own = custom && (chosen.is_empty() || dice.chance(60));
        let kind = if own { dice.below(CUSTOM) } else { CUSTOM + dice.below(all - CUSTOM) };
        if !chosen.contains(&kind) {
            chosen.push(kind);
        }
    }
    let count = 10 + dice.below(31);
    let mut generator = Generator { dice, kinds: chosen.clone(), made: BTreeSet::new(), prefixes: 0 };
    let mut steps = Vec::new();
    for number in 0..count {
        let step = if number < 1 + chosen.len() { generator.create(false) } else { generator.step() };
        steps.push(step);
    }
    unraced(&mut steps);
    Plan { kinds: chosen, steps }
}

/// Where an owner that is deleted in the foreground is held by another finalizer, whether a dependent that does not block it goes
/// is a race in Kubernetes' collector. There all dependents block.
fn unraced(steps: &mut [Step]) {
    let told = |step: &Step| format!("{:?}{}", step.query, step.body);
    if !steps.iter().any(|step| told(step).contains("example.com/")) {
        return;
    }
    let foreground = |step: &&Step| told(step).contains("oreground");
    let named = |step: &Step| match step.body["metadata"]["name"].as_str() {
        Some(name) if step.name.is_empty() => name.to_string(),
        _ => step.name.clone(),
    };
    let ended: Vec<(&str, String)> =
        steps.iter().filter(foreground).map(|step| (kinds::all()[step.kind].kind, named(step))).collect();
    for step in steps {
        let owners = step.body.pointer_mut("/metadata/ownerReferences").and_then(Value::as_array_mut);
        for owner in owners.into_iter().flatten() {
            let of = |(kind, name): &(&str, String)| {
                owner["kind"] == *kind && (name.is_empty() || owner["name"] == *name)
            };
            if ended.iter().any(of) {
                owner["blockOwnerDeletion"] = json!(true);
            }
        }
    }
}

struct Generator {
    dice: Dice,
    kinds: Vec<usize>,
    /// The objects that are likely to be there.
    made: BTreeSet<(usize, &'static str)>,
    /// Prefixes of generated names: each its own, so that the order of lists does not depend on what is generated.
    prefixes: usize,
}

#[derive(Clone, Copy)]
enum Sort {
    Create,
    Generate,
    Get,
    List,
    Replace,
    Merge,
    Json,
    Apply,
    Metadata,
    Delete,
    Collection,
    Odd,
}

/// Puts a value at a path of field names.
fn put(object: &mut Value, path: &[String], value: Value) {
    let Some((first, rest)) = path.split_first() else {
        *object = value;
        return;
    };
    if !object.is_object() {
        *object = json!({});
    }
    put(&mut object[first.as_str()], rest, value);
}

fn without_nulls(value: &mut Value) {
    if let Value::Object(fields) = value {
        fields.retain(|_, v| !v.is_null());
        fields.values_mut().for_each(without_nulls);
    }
}

impl Generator {
    fn step(&mut self) -> Step {
        let sorts = [
            (14, Sort::Create),
            (3, Sort::Generate),
            (4, Sort::Get),
            (9, Sort::List),
            (10, Sort::Replace),
            (10, Sort::Merge),
            (8, Sort::Json),
            (18, Sort::Apply),
            (12, Sort::Metadata),
            (12, Sort::Delete),
            (2, Sort::Collection),
            (5, Sort::Odd),
        ];
        match self.dice.weighted(&sorts) {
            Sort::Create => self.create(false),
            Sort::Generate => self.create(true),
            Sort::Get => self.get(),
            Sort::List => self.list(),
            Sort::Replace => self.replace(),
            Sort::Merge => self.merge(),
            Sort::Json => self.json(),
            Sort::Apply => self.apply(),
            Sort::Metadata => self.metadata(),
            Sort::Delete => self.delete(),
            Sort::Collection => self.collection(),
            Sort::Odd => self.odd(),
        }
    }

    fn kind(&mut self) -> (usize, &'static Kind) {
        let index = *self.dice.pick(&self.kinds);
        (index, &kinds::all()[index])
    }

    fn name(&mut self) -> &'static str {
        // Mostly the same object: requests must meet.
        self.dice.weighted(&[(60, NAMES[0]), (30, NAMES[1]), (10, NAMES[2])])
    }

    /// An object to ask for: mostly one that is there.
    fn target(&mut self) -> (usize, &'static Kind, &'static str) {
        let (index, kind) = self.kind();
        let name = self.name();
        if self.made.contains(&(index, name)) || self.dice.chance(12) {
            return (index, kind, name);
        }
        let there: Vec<_> = self.made.iter().copied().collect();
        if there.is_empty() {
            return (index, kind, name);
        }
        let (index, name) = *self.dice.pick(&there);
        (index, &kinds::all()[index], name)
    }

    /// A name for an object of a kind that is to be made: mostly one that is free.
    fn free(&mut self, kind: usize) -> &'static str {
        let name = self.name();
        let free = NAMES.into_iter().find(|name| !self.made.contains(&(kind, *name)));
        let taken = self.made.contains(&(kind, name));
        let name = if taken && self.dice.chance(75) { free.unwrap_or(name) } else { name };
        self.made.insert((kind, name));
        name
    }

    fn user(&mut self) -> usize {
        self.dice.below(USERS.len())
    }

    fn begin(&mut self, method: &'static str, kind: usize, name: &str) -> Step {
        let user = self.user();
        let mut step = Step::new(user, method, kind, name);
        if method != "GET" && method != "DELETE" {
            // Without it the name comes from the client's User-Agent.
            if self.dice.chance(85) {
                step.ask("fieldManager", USERS[user]);
            }
            if self.dice.chance(8) {
                step.ask("dryRun", "All");
            }
            if self.dice.chance(12) {
                let how = *self.dice.pick(&["Strict", "Warn", "Ignore"]);
                step.ask("fieldValidation", how);
            }
        }
        step
    }

    fn reference(&mut self) -> (String, String) {
        let (_, kind) = self.kind();
        let name = self.name();
        if self.dice.chance(50) {
            ("ConfigMap".into(), ANCHOR.into())
        } else {
            (kind.kind.into(), name.into())
        }
    }

    fn owner(&mut self) -> Value {
        let (kind, name) = self.reference();
        let api_version = kinds::all()[kinds::place(&kind)].api_version();
        let uid = if self.dice.chance(90) { format!("{{uid {kind}/{name}}}") } else { "nobody-s".into() };
        let mut owner = json!({"apiVersion": api_version, "kind": kind, "name": name, "uid": uid});
        if self.dice.chance(30) {
            owner["controller"] = json!(true);
        }
        if self.dice.chance(50) {
            owner["blockOwnerDeletion"] = json!(self.dice.chance(80));
        }
        owner
    }

    /// Some metadata beside the name.
    fn some_metadata(&mut self) -> Map<String, Value> {
        let mut meta = Map::new();
        if self.dice.chance(50) {
            let tier = *self.dice.pick(&["a", "b"]);
            meta.insert("labels".into(), json!({ "tier": tier }));
        }
        if self.dice.chance(10) {
            meta.insert("labels".into(), json!({"tier": "a", "example.com/more": "x_Y.z", "empty": ""}));
        }
        if self.dice.chance(15) {
            meta.insert("annotations".into(), json!({"note": self.dice.pick(&["x", "y"])}));
        }
        if self.dice.chance(12) {
            meta.insert("finalizers".into(), json!([HOLD]));
        }
        if self.dice.chance(10) {
            meta.insert("ownerReferences".into(), json!([self.owner()]));
        }
        if self.dice.chance(3) {
            let (field, value) = self.dice.pick(&bad_metadata()).clone();
            meta.insert(field.into(), value);
        }
        meta
    }

    /// A body with a good beginning and a few changes.
    fn body(&mut self, kind: &Kind, edits: usize) -> Value {
        let mut body = self.dice.pick(&kind.samples).clone();
        for _ in 0..edits {
            let (path, value) = kind.edit(&mut self.dice, false);
            put(&mut body, &path, value);
        }
        // Custom objects must say what they are.
        if self.dice.chance(if kind.definition.is_some() { 97 } else { 60 }) {
            body["apiVersion"] = kind.api_version().into();
            body["kind"] = kind.kind.into();
        }
        if kind.kind == "Pod" && body["spec"].is_object() {
            // The mount of the account's token has a generated name, and is nothing to a server that runs no pods.
            body["spec"]["automountServiceAccountToken"] = json!(false);
        }
        let status = kind.status && self.dice.chance(8);
        if status {
            let (path, value) = kind.edit(&mut self.dice, true);
            put(&mut body, &path, value);
        }
        body
    }

    fn few(&mut self) -> usize {
        self.dice.weighted(&[(45, 0), (35, 1), (15, 2), (5, 4)])
    }

    fn create(&mut self, generated: bool) -> Step {
        let (index, kind) = self.kind();
        let edits = self.few();
        let mut step = self.begin("POST", index, "");
        step.body = self.body(kind, edits);
        let mut meta = self.some_metadata();
        if generated {
            self.prefixes += 1;
            // Behind all fixed names.
            meta.insert("generateName".into(), format!("zz{}-", self.prefixes).into());
        } else {
            let name = self.free(index);
            meta.insert("name".into(), name.into());
            if step.query.iter().any(|(name, _)| name == "dryRun") {
                self.made.remove(&(index, name));
            }
        }
        if self.dice.chance(3) {
            let value = *self.dice.pick(&["1", "0", "x", ""]);
            meta.insert("resourceVersion".into(), value.into());
        }
        if self.dice.chance(3) {
            meta.insert("uid".into(), "mine".into());
            meta.insert("generation".into(), json!(7));
            meta.insert("creationTimestamp".into(), "2020-01-01T00:00:00Z".into());
        }
        step.body["metadata"] = Value::Object(meta);
        step
    }
}
