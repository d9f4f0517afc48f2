//! Runs one sequence on both servers and says where they differ.

use super::{
    USERS, gaps, ground, kinds,
    masks::{ASKED, Names, differences},
    plan::{ANCHOR, Plan},
    side::{Answer, Side},
    steps::{MERGE, Step},
    watches,
};
use crate::cluster::Cluster;
use anyhow::{Context, Result};
use holdfast_testkit::Server;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the real collector is waited for: one that is busy tries again later and later.
const COLLECTED: Duration = Duration::from_secs(40);

/// What became of a sequence.
#[derive(Default)]
pub struct Outcome {
    /// Requests whose answers were compared.
    pub requests: usize,
    /// How many of them were refused by both.
    pub refused: usize,
    /// Watch events that were compared.
    pub events: usize,
    /// The first difference; none: they agree.
    pub difference: Option<String>,
}

struct Pair {
    real: Side,
    fake: Side,
    server: Server,
    real_names: Names,
    fake_names: Names,
    outcome: Outcome,
}

/// Runs a sequence in a namespace that is empty, and empties it again.
///
/// Errors: the cluster does not answer; a difference is no error.
pub async fn run(cluster: &Cluster, space: &str, plan: &Plan, seed: u64) -> Result<Outcome> {
    let server = ground::in_memory(cluster, space, seed).await?;
    let fakes = USERS.iter().map(|user| server.client(user, space)).collect();
    let reals = USERS.iter().map(|_| cluster.client.clone()).collect();
    // Those of two tests may be under way at once. From this range the API server takes none by itself.
    let custom = plan.kinds.first().is_some_and(|kind| *kind < kinds::CUSTOM);
    let address = format!("{ASKED}{}", 20 + seed % 100 + if custom { 100 } else { 0 });
    let mut pair = Pair {
        real: Side::new(reals, space, &address),
        fake: Side::new(fakes, space, &address),
        server,
        real_names: Names::default(),
        fake_names: Names::default(),
        outcome: Outcome::default(),
    };
    let found = pair.play(plan).await;
    let cleared = clear(&mut pair.real, plan).await;
    pair.outcome.difference = found?;
    cleared?;
    Ok(pair.outcome)
}

fn made(kind: &str, name: &str) -> Step {
    let mut step = Step::new(0, "POST", kinds::place(kind), "");
    step.body = json!({"metadata": {"name": name}});
    step
}

impl Pair {
    async fn play(&mut self, plan: &Plan) -> Result<Option<String>> {
        // Pods need an account; owners need somebody to be owned by.
        for step in [made("ServiceAccount", "default"), made("ConfigMap", ANCHOR)] {
            if let Some(difference) = self.step(&step).await? {
                return Ok(Some(difference));
            }
        }
        let mut watching = Vec::new();
        for (number, kind) in plan.kinds.iter().enumerate() {
            for selector in if number == 0 { &["", "tier%3Da"][..] } else { &[""][..] } {
                let real = watches::open(&self.real, *kind, selector).await?;
                watching.push((real, watches::open(&self.fake, *kind, selector).await?));
            }
        }
        for (number, step) in plan.steps.iter().enumerate() {
            if let Some(difference) = self.step(step).await? {
                return Ok(Some(format!(
                    "request {} of {}: {step}\n{difference}",
                    number + 1,
                    plan.steps.len()
                )));
            }
        }
        for kind in &plan.kinds {
            let list = Step::new(0, "GET", *kind, "");
            if let Some(difference) = self.step(&list).await? {
                return Ok(Some(format!("the last list: {list}\n{difference}")));
            }
        }
        for kind in &plan.kinds {
            for side in [&self.real, &self.fake] {
                let client = side.client().context("no client")?;
                watches::end(client, &kinds::all()[*kind], &side.namespace).await?;
            }
        }
        for (real, fake) in &watching {
            let (kind, selector) = (kinds::all()[real.kind].kind, real.selector);
            let real = real.events(&self.real_names).await?;
            let fake = fake.events(&self.fake_names).await?;
            self.outcome.events += real.values().map(Vec::len).sum::<usize>();
            let types = |all: &[Value]| {
                all.iter()
                    .map(|e| e["type"].as_str().unwrap_or("?").to_string())
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let names: std::collections::BTreeSet<&String> = real.keys().chain(fake.keys()).collect();
            for name in names {
                let (a, b) = (
                    real.get(name).cloned().unwrap_or_default(),
                    fake.get(name).cloned().unwrap_or_default(),
                );
                let found = differences("event", &json!(a), &json!(b));
                if !found.is_empty() {
                    return Ok(Some(format!(
                        "watch of {kind} {selector}, {name}: real sent {}; in memory {}\n  {}",
                        types(&a),
                        types(&b),
                        found.join("\n  ")
                    )));
                }
            }
        }
        Ok(None)
    }

    /// One request to both. `Some`: how the answers differ.
    async fn step(&mut self, step: &Step) -> Result<Option<String>> {
        let real = self.real.carry_out(step).await.context("the real server")?;
        let fake = self.fake.carry_out(step).await.context("the server in memory")?;
        for (real, fake) in real.iter().zip(&fake) {
            self.outcome.requests += 1;
            self.outcome.refused += usize::from(real.code >= 400);
            self.real_names.learn(&real.body);
            self.fake_names.learn(&fake.body);
            let (mut a, b) = (self.real_names.masked(real), self.fake_names.masked(fake));
            let said = |answer: &Answer| answer.body["message"].as_str().unwrap_or_default().to_string();
            if gaps::first_of_several(&said(real), &said(fake)) {
                a.body["message"] = b.body["message"].clone();
            }
            if let Some(difference) = differs(&a, &b) {
                return Ok(Some(difference));
            }
        }
        self.settle().await
    }

    /// Lets the collectors of both servers do what is to be done: the real ones act by themselves, a moment later.
    async fn settle(&mut self) -> Result<Option<String>> {
        let before = self.server.writes().len();
        if self.server.collect_all() == 0 {
            return Ok(None);
        }
        let mut touched: Vec<(usize, String)> = Vec::new();
        for write in &self.server.writes()[before..] {
            let place = (kinds::place(&write.kind), write.name.clone());
            if !touched.contains(&place) {
                touched.push(place);
            }
        }
        for (kind, name) in touched {
            let look = Step::new(0, "GET", kind, &name);
            let same = self.real.counterpart(kinds::all()[kind].kind, &name);
            let look_there = Step::new(0, "GET", kind, &same);
            let fake = self.fake.carry_out(&look).await?;
            let mut last = None;
            let start = std::time::Instant::now();
            loop {
                let real = self.real.carry_out(&look_there).await?;
                let (Some(real), Some(fake)) = (real.first(), fake.first()) else { break };
                // Revisions are learnt when both have come to rest.
                let mut a = self.real_names.masked(real);
                let mut b = self.fake_names.masked(fake);
                for answer in [&mut a, &mut b] {
                    if let Some(version) = answer.body.pointer_mut("/metadata/resourceVersion") {
                        *version = Value::Null;
                    }
                }
                last = differs(&a, &b);
                if last.is_none() {
                    self.real_names.learn(&real.body);
                    self.fake_names.learn(&fake.body);
                    break;
                }
                if start.elapsed() > COLLECTED {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            if let Some(difference) = last {
                return Ok(Some(format!(
                    "after collection, {} {name}:\n{difference}",
                    kinds::all()[kind].kind
                )));
            }
        }
        Ok(None)
    }
}

fn differs(real: &Answer, fake: &Answer) -> Option<String> {
    if real == fake {
        return None;
    }
    let said = |a: &Answer| {
        let text = if a.code >= 400 { a.body.to_string() } else { String::new() };
        format!("{} {}", a.code, text.chars().take(900).collect::<String>())
    };
    let mut found = differences("", &real.body, &fake.body);
    if real.code != fake.code {
        found = Vec::new();
    }
    found.truncate(12);
    Some(format!("  real:      {}\n  in memory: {}\n  {}", said(real), said(fake), found.join("\n  ")))
}

/// Empties the namespace for the next sequence.
async fn clear(real: &mut Side, plan: &Plan) -> Result<()> {
    let mut all = plan.kinds.clone();
    for kind in ["ConfigMap", "ServiceAccount"] {
        if !all.contains(&kinds::place(kind)) {
            all.push(kinds::place(kind));
        }
    }
    let client = real.client().context("no client")?.clone();
    let all_gone = async {
        for kind in &all {
            let kind = &kinds::all()[*kind];
            let path = kind.path(&real.namespace);
            let options = json!({"propagationPolicy": "Background", "gracePeriodSeconds": 0});
            let request = http::Request::delete(&path).header(http::header::CONTENT_TYPE, super::steps::JSON);
            let _: Value = client.request(request.body(serde_json::to_vec(&options)?)?).await?;
        }
        Ok::<_, anyhow::Error>(())
    };
    all_gone.await?;
    for kind in &all {
        let kind = &kinds::all()[*kind];
        let path = kind.path(&real.namespace);
        watches::soon(&format!("{} to be gone", kind.plural), || async {
            let list: Value = client.request(http::Request::get(&path).body(Vec::new())?).await?;
            let items = list["items"].as_array().cloned().unwrap_or_default();
            for item in &items {
                let Some(name) = item["metadata"]["name"].as_str() else { continue };
                let held = item["metadata"]["finalizers"].is_array();
                if held && item["metadata"]["deletionTimestamp"].is_string() {
                    let patch = json!({"metadata": {"finalizers": null}});
                    let request = http::Request::patch(format!("{path}/{name}"))
                        .header(http::header::CONTENT_TYPE, MERGE);
                    // The collector may have been faster.
                    let _ = client.request::<Value>(request.body(serde_json::to_vec(&patch)?)?).await;
                }
            }
            Ok(items.is_empty())
        })
        .await?;
    }
    Ok(())
}
