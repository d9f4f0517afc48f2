//! Makes sequences of requests from seeds.

use super::{
    USERS,
    dice::Dice,
    kinds::{self, CUSTOM, Kind},
    steps::{APPLY, Base, JSON, MERGE, PATCH, Step},
};
use serde_json::{Map, Value, json};

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
    let mut generator = Generator { dice, kinds: chosen.clone(), prefixes: 0 };
    let mut steps = Vec::new();
    for number in 0..count {
        let step = if number < 2 { generator.create(false) } else { generator.step() };
        steps.push(step);
    }
    Plan { kinds: chosen, steps }
}

struct Generator {
    dice: Dice,
    kinds: Vec<usize>,
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
            meta.insert("name".into(), self.name().into());
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

    fn get(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("GET", index, name);
        if kind.status && self.dice.chance(20) {
            step.subresource = "status";
        }
        step
    }

    fn list(&mut self) -> Step {
        let (index, kind) = self.kind();
        let mut step = self.begin("GET", index, "");
        if self.dice.chance(50) {
            let selectors = [
                "tier=a",
                "tier!=a",
                "tier in (a,b)",
                "tier notin (a)",
                "tier",
                "!tier",
                "tier=a,tier!=b",
                "tier==b",
                "example.com/more=x_Y.z",
                "empty=",
                "tier>3",
                "a b",
                "tier in a",
            ];
            let selector = *self.dice.pick(&selectors);
            step.ask("labelSelector", selector);
        }
        if self.dice.chance(30) {
            let selector = *self.dice.pick(kind.selectors);
            step.ask("fieldSelector", selector);
        }
        if self.dice.chance(50) {
            let limit = 1 + self.dice.below(2);
            step.ask("limit", &limit.to_string());
            if self.dice.chance(60) {
                step.ask("continue", &format!("{{continue {}}}", kind.kind));
            }
        } else if self.dice.chance(12) {
            let name = self.name();
            step.ask("resourceVersion", &format!("{{rv {}/{name}}}", kind.kind));
            step.ask("resourceVersionMatch", "Exact");
        }
        step
    }

    /// Which part of the object a write goes to.
    fn door(&mut self, kind: &Kind) -> &'static str {
        if kind.status && self.dice.chance(30) { "status" } else { "" }
    }

    /// Changes alone, as nested fields.
    fn changes(&mut self, kind: &Kind, door: &str) -> Value {
        let mut body = json!({});
        for _ in 0..1 + self.dice.below(2) {
            let status = (door == "status") != self.dice.chance(8) && kind.status;
            let (path, value) = kind.edit(&mut self.dice, status);
            put(&mut body, &path, value);
        }
        body
    }

    fn replace(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("PUT", index, name);
        step.subresource = self.door(kind);
        let place = format!("{}/{name}", kind.kind);
        step.base = self.dice.weighted(&[(45, Base::Fresh), (30, Base::Seen), (25, Base::Nothing)]);
        if step.base == Base::Nothing {
            let edits = self.few();
            step.body = self.body(kind, edits);
            if step.subresource == "status" {
                let status = self.changes(kind, "status");
                step.body["status"] = status["status"].clone();
            }
            let mut meta = self.some_metadata();
            meta.insert("name".into(), name.into());
            match self.dice.below(10) {
                0..=3 => meta.insert("resourceVersion".into(), format!("{{rv {place}}}").into()),
                4 => meta.insert("resourceVersion".into(), format!("{{first-rv {place}}}").into()),
                5 => meta.insert("resourceVersion".into(), "1".into()),
                _ => None,
            };
            match self.dice.below(12) {
                0 => meta.insert("uid".into(), format!("{{uid {place}}}").into()),
                1 => meta.insert("uid".into(), format!("{{first-uid {place}}}").into()),
                2 => meta.insert("uid".into(), "nobody-s".into()),
                _ => None,
            };
            step.body["metadata"] = Value::Object(meta);
        } else {
            step.body = if self.dice.chance(15) { json!({}) } else { self.changes(kind, step.subresource) };
            if self.dice.chance(15) {
                step.body["metadata"] = json!({"resourceVersion": null});
            }
            if self.dice.chance(10) {
                step.body["metadata"]["managedFields"] =
                    self.dice.pick(&[Value::Null, json!([]), json!([{}])]).clone();
            }
            if self.dice.chance(10) {
                step.body["metadata"]["labels"] =
                    self.dice.pick(&[Value::Null, json!({"tier": "b"})]).clone();
            }
        }
        step
    }

    fn merge(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("PATCH", index, name);
        step.content = MERGE;
        step.subresource = self.door(kind);
        step.body = self.changes(kind, step.subresource);
        if self.dice.chance(25) {
            let place = format!("{}/{name}", kind.kind);
            let (field, value) = self
                .dice
                .pick(&[
                    ("resourceVersion", format!("{{rv {place}}}")),
                    ("resourceVersion", format!("{{first-rv {place}}}")),
                    ("resourceVersion", "x".into()),
                    ("uid", format!("{{uid {place}}}")),
                    ("uid", "nobody-s".into()),
                    ("name", "four".into()),
                    ("namespace", "elsewhere".into()),
                    ("generateName", "g-".into()),
                ])
                .clone();
            step.body["metadata"][field] = value.into();
        }
        if self.dice.chance(25) {
            let value = self.dice.pick(&[json!("a"), json!("b"), Value::Null]).clone();
            step.body["metadata"]["labels"] = json!({ "tier": value });
        }
        step
    }

    fn json(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("PATCH", index, name);
        step.content = PATCH;
        step.subresource = self.door(kind);
        let mut operations = Vec::new();
        for _ in 0..1 + self.dice.below(2) {
            let (path, value) = kind.edit(&mut self.dice, step.subresource == "status");
            let pointer: String =
                path.iter().map(|p| format!("/{}", p.replace('~', "~0").replace('/', "~1"))).collect();
            operations.push(match self.dice.below(8) {
                0 => json!({"op": "remove", "path": pointer}),
                1 | 2 => json!({"op": "replace", "path": pointer, "value": value}),
                3 => json!({"op": "test", "path": pointer, "value": value}),
                4 => json!({"op": "test", "path": "/metadata/uid", "value": format!("{{uid {}/{name}}}", kind.kind)}),
                5 => json!({"op": "add", "path": "/metadata/labels", "value": {"tier": "b"}}),
                _ => json!({"op": "add", "path": pointer, "value": value}),
            });
        }
        if self.dice.chance(10) {
            operations.insert(0, json!({"op": "test", "path": "/metadata/resourceVersion", "value": format!("{{rv {}/{name}}}", kind.kind)}));
        }
        step.body = Value::Array(operations);
        step
    }

    fn apply(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("PATCH", index, name);
        step.content = APPLY;
        step.query.retain(|(name, _)| name != "fieldManager");
        if !self.dice.chance(2) {
            let manager = USERS[step.user];
            step.ask("fieldManager", manager);
        }
        if self.dice.chance(55) {
            step.ask("force", "true");
        }
        step.subresource = self.door(kind);
        let whole = self.dice.chance(if step.subresource.is_empty() { 60 } else { 10 });
        let mut body = if whole {
            let edits = self.few();
            self.body(kind, edits)
        } else {
            self.changes(kind, step.subresource)
        };
        // A null is nothing to apply; a few are left to see what becomes of them.
        if self.dice.chance(90) {
            without_nulls(&mut body);
        }
        if kind.kind == "Pod" && body["spec"].is_object() {
            body["spec"]["automountServiceAccountToken"] = json!(false);
        }
        body["apiVersion"] = kind.api_version().into();
        body["kind"] = kind.kind.into();
        let mut meta = self.some_metadata();
        if self.dice.chance(80) {
            meta.insert("name".into(), name.into());
        }
        if self.dice.chance(4) {
            let place = format!("{}/{name}", kind.kind);
            let value = self.dice.pick(&[format!("{{rv {place}}}"), format!("{{first-rv {place}}}")]).clone();
            meta.insert("resourceVersion".into(), value.into());
        }
        if self.dice.chance(6) {
            let place = format!("{}/{name}", kind.kind);
            let value = self.dice.pick(&[format!("{{uid {place}}}"), "nobody-s".into()]).clone();
            meta.insert("uid".into(), value.into());
        }
        body["metadata"] = Value::Object(meta);
        step.body = body;
        step
    }

    /// Labels, annotations, finalizers and owners, through one of the forms of patches.
    fn metadata(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("PATCH", index, name);
        step.content = MERGE;
        if kind.status && self.dice.chance(8) {
            step.subresource = "status";
        }
        // A controller gives a claim its finalizer back whenever it likes.
        let first = if kind.kind == "PersistentVolumeClaim" { 5 } else { 0 };
        let mut meta = match first + self.dice.below(9 - first) {
            0 => json!({"finalizers": [HOLD]}),
            1 | 2 => json!({ "finalizers": null }),
            3 => json!({"finalizers": [HOLD, "example.com/other"]}),
            4 => {
                json!({"finalizers": ["example.com/other", self.dice.pick(&["orphan", "foregroundDeletion", "odd", HOLD])]})
            }
            5 => json!({"ownerReferences": [self.owner()]}),
            6 => json!({"ownerReferences": self.dice.pick(&[Value::Null, json!([])]).clone()}),
            7 => {
                json!({"labels": {"tier": self.dice.pick(&[json!("a"), json!("b"), Value::Null]).clone()}, "annotations": {"note": self.dice.pick(&[json!("1"), json!("2"), Value::Null]).clone()}})
            }
            _ => {
                let (field, value) = self.dice.pick(&bad_metadata()).clone();
                json!({ field: value })
            }
        };
        if self.dice.chance(30) {
            step.content = APPLY;
            step.query.retain(|(name, _)| name != "fieldManager");
            let manager = USERS[step.user];
            step.ask("fieldManager", manager);
            if self.dice.chance(60) {
                step.ask("force", "true");
            }
            without_nulls(&mut meta);
            // What an untyped object makes of an empty list of owners is seen in the store only.
            if meta["ownerReferences"] == json!([]) {
                meta = json!({"labels": {"tier": "b"}});
            }
            step.body = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": meta});
        } else {
            if self.dice.chance(20) {
                meta["resourceVersion"] = format!("{{rv {}/{name}}}", kind.kind).into();
            }
            step.body = json!({ "metadata": meta });
        }
        step
    }

    fn delete(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        let mut step = self.begin("DELETE", index, name);
        let place = format!("{}/{name}", kind.kind);
        let mut options = json!({});
        // Two controllers take their finalizers off a claim, in no particular order.
        let claim = kind.kind == "PersistentVolumeClaim";
        if self.dice.chance(50) && !claim {
            options["propagationPolicy"] =
                json!(*self.dice.pick(&["Background", "Background", "Foreground", "Orphan", "Odd"]));
        }
        if self.dice.chance(35) {
            let uid = self
                .dice
                .pick(&[format!("{{uid {place}}}"), format!("{{first-uid {place}}}"), "nobody-s".into()])
                .clone();
            options["preconditions"]["uid"] = uid.into();
        }
        if self.dice.chance(20) {
            let version =
                self.dice.pick(&[format!("{{rv {place}}}"), format!("{{first-rv {place}}}")]).clone();
            options["preconditions"]["resourceVersion"] = version.into();
        }
        if self.dice.chance(15) {
            options["gracePeriodSeconds"] = json!(*self.dice.pick(&[0, 5, 30]));
        }
        if self.dice.chance(8) {
            options["dryRun"] = json!(["All"]);
        }
        if options != json!({}) {
            options["apiVersion"] = "v1".into();
            options["kind"] = "DeleteOptions".into();
            step.body = options;
        }
        step
    }

    fn collection(&mut self) -> Step {
        let (index, _) = self.kind();
        let mut step = self.begin("DELETE", index, "");
        if self.dice.chance(70) {
            let selector = *self.dice.pick(&["tier=a", "tier=b", "!tier"]);
            step.ask("labelSelector", selector);
        }
        if self.dice.chance(20) {
            step.ask("dryRun", "All");
        }
        step
    }

    /// What nobody should ask for.
    fn odd(&mut self) -> Step {
        let (index, kind) = self.kind();
        let name = self.name();
        match self.dice.below(9) {
            0 => {
                let mut step = self.begin("GET", index, name);
                step.subresource = "surprise";
                step
            }
            1 => {
                let mut step = self.begin("PUT", index, name);
                step.body = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "four"}});
                step
            }
            2 => {
                let mut step = self.begin("POST", index, "");
                step.body = self.body(kind, 0);
                step.body["kind"] = "Other".into();
                step.body["apiVersion"] = kind.api_version().into();
                step.body["metadata"] = json!({ "name": name });
                step
            }
            3 => {
                let mut step = self.begin("POST", index, "");
                step.body = self.body(kind, 0);
                step.body["metadata"] = json!({"name": name, "namespace": "elsewhere"});
                step
            }
            4 => {
                let mut step = self.begin("PATCH", index, name);
                step.content = JSON;
                step.body = json!({});
                step
            }
            5 => {
                let mut step = self.begin("POST", index, "");
                step.body = self.body(kind, 0);
                step.body["metadata"] = self
                    .dice
                    .pick(&[
                        json!({}),
                        json!({"name": "Bad_Name"}),
                        json!({"name": "a/b"}),
                        json!({"name": "-a"}),
                        json!({"name": "x".repeat(260)}),
                        json!({"generateName": "zz0_-"}),
                    ])
                    .clone();
                step
            }
            6 => {
                let mut step = self.begin("POST", index, name);
                step.body = json!({});
                step
            }
            7 => {
                let mut step = self.begin("PATCH", index, name);
                step.content = MERGE;
                step.body = self
                    .dice
                    .pick(&[
                        json!({"metadata": null}),
                        json!({"kind": "Other"}),
                        json!({"apiVersion": "v9"}),
                        json!([]),
                        json!("text"),
                    ])
                    .clone();
                step
            }
            _ => {
                let mut step = self.begin("PUT", index, name);
                step.body = self
                    .dice
                    .pick(&[json!([]), json!("text"), json!({"metadata": "text"}), json!({})])
                    .clone();
                step
            }
        }
    }
}

fn bad_metadata() -> Vec<(&'static str, Value)> {
    vec![
        ("labels", json!({"tier": "-x"})),
        ("labels", json!({"/tier": "x"})),
        ("labels", json!({"tier": "x".repeat(64)})),
        ("labels", json!({"tier": 5})),
        ("labels", json!([])),
        ("annotations", json!({"a b": "x"})),
        ("finalizers", json!(["odd"])),
        ("finalizers", json!(["example.com/a b"])),
        ("ownerReferences", json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "anchor"}])),
        ("ownerReferences", json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "", "uid": "u"}])),
        ("surprise", json!(1)),
        ("managedFields", json!([{"manager": "x", "operation": "Update"}])),
        ("generateName", json!("g-")),
        ("creationTimestamp", json!("2020-01-01T00:00:00Z")),
        ("deletionTimestamp", json!("2020-01-01T00:00:00Z")),
        ("generation", json!(9)),
    ]
}
