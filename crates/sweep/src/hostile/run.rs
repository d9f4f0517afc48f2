//! Tries changes: makes each, looks what became of it, takes it back, and compares with before.

use super::{
    bases,
    change::{Back, Change, Target},
    compare::State,
    generate,
    ground::{self, Ground},
    lasting,
    options::{Moment, Options},
    oracle::{Answer, Seen, Verdict, judge},
    report::{Outcome, Report},
    schema,
};
use crate::world::World;
use kube::Client;
use serde_json::{Value, json};
use std::time::Duration;

/// How long the first sign of work may take, in the cluster's time.
const SIGN: Duration = Duration::from_secs(120);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Tries all changes that the options choose, on clusters of its own. Errors: the definitions cannot be read, or the
/// options choose nothing.
pub fn run(options: &Options, tried: impl Fn(&Outcome) + Sync) -> Result<Report, String> {
    let changes = chosen(options)?;
    let mut report = Report::default();
    std::thread::scope(|scope| {
        let parts = (0..options.threads).map(|part| {
            let (changes, tried) = (&changes, &tried);
            scope.spawn(move || {
                let mut builder = tokio::runtime::Builder::new_current_thread();
                match builder.enable_all().start_paused(true).build() {
                    Ok(runtime) => runtime.block_on(run_part(options, changes, part, World::new, tried)),
                    Err(error) => Report { failures: vec![error.to_string()], ..Report::default() },
                }
            })
        });
        for part in parts.collect::<Vec<_>>() {
            match part.join() {
                Ok(part) => report.merge(part),
                Err(_) => report.failures.push("a thread panicked: what it tried is lost".into()),
            }
        }
    });
    Ok(report)
}

/// The changes that the options choose. Errors: there are none.
pub fn chosen(options: &Options) -> Result<Vec<Change>, String> {
    let mut all = generate::all()?;
    all.retain(|c| options.kinds.is_empty() || options.kinds.iter().any(|kind| kind == c.kind));
    if let Some(only) = &options.only {
        let exactly = all.iter().any(|change| change.to_string() == *only);
        all.retain(|c| if exactly { c.to_string() == *only } else { c.to_string().contains(only) });
    }
    let every = all.into_iter().enumerate().filter(|(index, _)| index % options.every == 0);
    let all: Vec<Change> = every.map(|(_, change)| change).collect();
    if all.is_empty() { Err("no change is chosen; see --help".into()) } else { Ok(all) }
}

/// Tries one thread's part of the changes on clusters that `new` makes.
pub async fn run_part<G: Ground>(
    options: &Options,
    changes: &[Change],
    part: usize,
    new: impl AsyncFn(u64) -> Result<G, String>,
    tried: impl Fn(&Outcome),
) -> Report {
    let mut report = Report::default();
    for kind in schema::kinds() {
        let mine: Vec<&Change> = changes.iter().filter(|c| c.kind == kind).collect();
        let begin = mine.len() * part / options.threads;
        let end = mine.len() * (part + 1) / options.threads;
        let mut runner = Runner {
            kind,
            new: &new,
            seed: options.seed,
            lines: options.lines,
            stage: None,
            reference: None,
        };
        for moment in &options.moments {
            for change in mine.iter().take(end).skip(begin) {
                // A change that makes an object, or one of an operator's own, knows but one moment.
                let moved = change.makes() || change.back == Back::Itself || !change.path.starts_with("spec");
                if *moment != Moment::Rest && moved || *moment == Moment::Rollout && kind != "Database" {
                    continue;
                }
                match runner.attempt(change, *moment).await {
                    Ok((verdict, lasting)) => {
                        // What is refused at rest is refused at any moment: it says nothing new.
                        if *moment != Moment::Rest && verdict == Verdict::Refused {
                            continue;
                        }
                        let outcome =
                            Outcome { change: Change::clone(change), moment: *moment, verdict, lasting };
                        tried(&outcome);
                        report.outcomes.push(outcome);
                    }
                    Err(why) => {
                        runner.stage = None;
                        report.failures.push(format!("{change} ({moment}): {why}"));
                    }
                }
            }
        }
    }
    report
}

/// A cluster at rest, with the base in it.
struct Stage<G> {
    ground: G,
    calm: State,
    /// Changes that were carried out and taken back.
    used: u32,
}

/// After so many changes a new cluster is taken: the old one's history makes every look slower.
const WORN: u32 = 20;

struct Runner<'a, G, N> {
    kind: &'static str,
    new: &'a N,
    seed: u64,
    lines: usize,
    /// Used for one change after the other, as long as all comes back.
    stage: Option<Stage<G>>,
    /// The end state of an undisturbed first rollout.
    reference: Option<State>,
}

type Tried = Result<(Verdict, Option<&'static str>), String>;

impl<G: Ground, N: AsyncFn(u64) -> Result<G, String>> Runner<'_, G, N> {
    fn base(&self) -> Target {
        let base = bases::base(self.kind);
        Target::ours(self.kind, base["metadata"]["name"].as_str().unwrap_or_default())
    }

    /// A new cluster with all that the base needs, at rest.
    async fn scene(&self) -> Result<G, String> {
        let mut ground = (self.new)(self.seed).await?;
        for object in bases::scene(self.kind) {
            match object {
                Some(object) => must(ground::make(&ground.user(), &object).await?, &object)?,
                None => ground.settle().await?,
            }
        }
        Ok(ground)
    }

    async fn bring_up(&self) -> Result<Stage<G>, String> {
        let mut ground = self.scene().await?;
        let base = bases::base(self.kind);
        must(ground::make(&ground.user(), &base).await?, &base)?;
        ground.settle().await?;
        if let Some(problem) = ground.problems().first() {
            return Err(format!("before any change: {problem}"));
        }
        let calm = State::read(&ground.dump());
        Ok(Stage { ground, calm, used: 0 })
    }

    async fn attempt(&mut self, change: &Change, moment: Moment) -> Tried {
        if moment == Moment::Rollout {
            return self.in_rollout(change).await;
        }
        let stage = match self.stage.take() {
            Some(stage) => stage,
            None => self.bring_up().await?,
        };
        let (verdict, lasting, stage) = self.at_rest(stage, change, moment).await?;
        let found = matches!(verdict, Verdict::Finding(_));
        self.stage = stage.filter(|stage| !found && lasting.is_none() && stage.used < WORN);
        Ok((verdict, lasting))
    }

    /// There, and back; with the stage when it is as it was.
    async fn at_rest(
        &self,
        mut stage: Stage<G>,
        change: &Change,
        moment: Moment,
    ) -> Result<(Verdict, Option<&'static str>, Option<Stage<G>>), String> {
        let client = stage.ground.user();
        let speaker = if change.makes() { change.target.clone() } else { self.base() };
        let before = ground::get(&client, &speaker).await?;
        forbid_image(&stage.ground, change);
        let answer = ground::apply(&client, change).await?;
        if let Answer::Refused { .. } = answer {
            let verdict = judge(change, &answer, None);
            return Ok((verdict, None, Some(stage)));
        }
        stage.used += 1;
        let verdict = match moment {
            Moment::Early => {
                sign(&client, &speaker, observed).await?;
                Verdict::CarriedOut
            }
            _ => {
                let seen = see(&mut stage, change, &speaker, before.as_ref()).await?;
                judge(change, &answer, Some(&seen))
            }
        };
        if matches!(verdict, Verdict::Finding(_)) {
            return Ok((verdict, None, None));
        }
        let lasting = lasting::why(change);
        // What an operator says that it cannot put right is said, and Secrets are not its to put right.
        let said = matches!(verdict, Verdict::Stalled(_)) && change.back == Back::Itself;
        if said || lasting::left_alone(change) {
            return Ok((verdict, None, None));
        }
        let back = ground::revert(&client, change).await?;
        if let Answer::Refused { message, .. } = &back {
            return Ok(match lasting {
                Some(_) => (verdict, lasting, None),
                None => (Verdict::Finding(format!("cannot be taken back: {message}")), None, None),
            });
        }
        let verdict = match self.came_back(&mut stage, change, lasting).await? {
            Some(what) => Verdict::Finding(what),
            None => verdict,
        };
        Ok((verdict, lasting, Some(stage)))
    }

    /// What is not as it was, after the way back.
    async fn came_back(
        &self,
        stage: &mut Stage<G>,
        change: &Change,
        lasting: Option<&'static str>,
    ) -> Result<Option<String>, String> {
        if let Err(why) = stage.ground.settle().await {
            return Ok(Some(format!("never at rest on the way back: {why}")));
        }
        if change.makes() {
            self.tidy(stage).await?;
        }
        let writes = stage.ground.resync_writes().await;
        if let Some(first) = writes.first() {
            return Ok(Some(format!("{} writes at rest after the way back: {first}", writes.len())));
        }
        if let Some(problem) = stage.ground.problems().first() {
            return Ok(Some(format!("after the way back: {problem}")));
        }
        if lasting.is_some() {
            return Ok(None);
        }
        let mut all = stage.calm.differences(&State::read(&stage.ground.dump()));
        let found = all.len();
        all.retain(|line| !lasting::leaves(change, line));
        // What stays would be in the way of the next change.
        stage.used = if all.len() < found { WORN } else { stage.used };
        let shown = all.iter().take(self.lines).map(|line| format!("\n      {line}")).collect::<String>();
        let what = format!("not as before after the way back, {} differences:{shown}", all.len());
        Ok((!all.is_empty()).then_some(what))
    }

    /// Takes away what a made object brought about and what is its user's to take away: Databases and Backups.
    async fn tidy(&self, stage: &mut Stage<G>) -> Result<(), String> {
        let (client, now) = (stage.ground.user(), State::read(&stage.ground.dump()));
        for kind in ["Database", "Backup"] {
            let known = stage.calm.names(kind);
            for name in now.names(kind).into_iter().filter(|name| !known.contains(name)) {
                let target = Target::ours(kind, &name);
                ground::patch(&client, &target, &json!({"spec": {"deletionPolicy": "Delete"}})).await?;
                stage.ground.settle().await?;
                ground::delete(&client, &target).await?;
                stage.ground.settle().await?;
            }
        }
        Ok(())
    }

    /// The change comes before the first pods are ready.
    async fn in_rollout(&mut self, change: &Change) -> Tried {
        if self.reference.is_none() {
            self.reference = Some(self.bring_up().await?.calm);
        }
        let Some(calm) = self.reference.clone() else { return Err("no end state to compare with".into()) };
        let ground = self.scene().await?;
        let (client, base) = (ground.user(), bases::base(self.kind));
        must(ground::make(&client, &base).await?, &base)?;
        let pod = Target::of("v1", "Pod", &holdfast_core::names::pod(&self.base().name, 0));
        sign(&client, &pod, |_| true).await?;
        let speaker = self.base();
        let before = ground::get(&client, &speaker).await?;
        forbid_image(&ground, change);
        let answer = ground::apply(&client, change).await?;
        if let Answer::Refused { .. } = answer {
            return Ok((judge(change, &answer, None), None));
        }
        let mut stage = Stage { ground, calm, used: 0 };
        let seen = see(&mut stage, change, &speaker, before.as_ref()).await?;
        let verdict = judge(change, &answer, Some(&seen));
        if matches!(verdict, Verdict::Finding(_)) {
            return Ok((verdict, None));
        }
        let lasting = lasting::why(change);
        if let Answer::Refused { message, .. } = ground::revert(&client, change).await? {
            return Ok(match lasting {
                Some(_) => (verdict, lasting),
                None => (Verdict::Finding(format!("cannot be taken back: {message}")), None),
            });
        }
        let verdict = match self.came_back(&mut stage, change, lasting).await? {
            Some(what) => Verdict::Finding(what),
            None => verdict,
        };
        Ok((verdict, lasting))
    }
}

/// An image that is made up is nowhere to be pulled.
fn forbid_image(ground: &impl Ground, change: &Change) {
    let image = change.change.pointer("/spec/image").and_then(Value::as_str);
    if let Some(image) = image.filter(|_| !change.label.starts_with("other")) {
        ground.without_image(image);
    }
}

/// Everything that the oracle wants to know of a change that was accepted.
async fn see<G: Ground>(
    stage: &mut Stage<G>,
    change: &Change,
    speaker: &Target,
    before: Option<&Value>,
) -> Result<Seen, String> {
    let client = stage.ground.user();
    let settled = stage.ground.settle().await;
    let writes = if settled.is_ok() { stage.ground.resync_writes().await } else { Vec::new() };
    let object = ground::get(&client, speaker).await?;
    let own = |state: State| state.without_spec(&change.target.kind, &change.target.name);
    let elsewhere = own(stage.calm.clone()) != own(State::read(&stage.ground.dump()));
    let (then, now) = (before.map(plain), object.as_ref().map(plain));
    let part = |of: &Option<Value>, name: &str| of.as_ref().map(|object| object[name].clone());
    let stored = ["spec", "metadata"].iter().any(|name| part(&then, name) != part(&now, name));
    let effect = elsewhere || part(&then, "status") != part(&now, "status");
    Ok(Seen { settled, object, stored, effect, writes, problems: stage.ground.problems() })
}

/// An object without what every write and every look changes.
fn plain(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(meta) = object["metadata"].as_object_mut() {
        for name in ["resourceVersion", "generation", "managedFields"] {
            meta.remove(name);
        }
    }
    hollow(&mut object);
    if let Some(status) = object["status"].as_object_mut() {
        status.remove("observedGeneration");
        for condition in status.get_mut("conditions").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(fields) = condition.as_object_mut() {
                fields.remove("observedGeneration");
                fields.remove("lastTransitionTime");
            }
        }
    }
    object
}

/// Takes out what is empty: it means the same as what is not there.
fn hollow(value: &mut Value) {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(hollow);
            fields.retain(|_, field| !empty(field));
        }
        Value::Array(items) => items.iter_mut().for_each(hollow),
        _ => {}
    }
}

/// Waits a while for the first sign of work; none is no error.
async fn sign(client: &Client, target: &Target, is: impl Fn(&Value) -> bool) -> Result<(), String> {
    let end = tokio::time::Instant::now() + SIGN;
    while tokio::time::Instant::now() < end {
        if ground::get(client, target).await?.is_some_and(|object| is(&object)) {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}

fn observed(object: &Value) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
}

fn must(answer: Answer, object: &Value) -> Result<(), String> {
    match answer {
        Answer::Accepted => Ok(()),
        Answer::Refused { message, .. } => Err(format!(
            "the scene's {} {} is refused: {message}",
            object["kind"], object["metadata"]["name"]
        )),
    }
}
