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
    parts::{self, Part},
    report::{Outcome, Report},
    schema,
};
use crate::{
    branch::{self, Copied, copied},
    world::World,
};
use kube::Client;
use serde_json::{Value, json};
use std::time::Duration;

/// Changes a process: each process pays once for the cluster that they are tried on.
const PORTION: usize = 48;
/// How long the first sign of work may take, in the cluster's time.
const SIGN: Duration = Duration::from_secs(120);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(20);

/// Tries all changes that the options choose; `tried` hears of each. Errors: the definitions cannot be read, or the options choose
/// nothing.
pub fn run(options: &Options, tried: impl FnMut(&Outcome)) -> Result<Report, String> {
    parts::run_all(parts_of(options, &chosen(options)?), options.threads, tried)
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

/// What each process has to do.
fn parts_of(options: &Options, changes: &[Change]) -> Vec<Part> {
    let mut all = Vec::new();
    // Those that take longest first: all processes are busy to the end.
    for moment in [Moment::Rollout, Moment::Rest, Moment::Early] {
        for kind in schema::kinds().filter(|_| options.moments.contains(&moment)) {
            let knows = |change: &&Change| {
                // A change that makes an object, or one of an operator's own, knows but one moment.
                let moved = change.makes() || change.back == Back::Itself || !change.path.starts_with("spec");
                change.kind == kind
                    && (moment == Moment::Rest || !moved)
                    && (moment != Moment::Rollout || kind == "Database")
            };
            let mine: Vec<String> = changes.iter().filter(knows).map(ToString::to_string).collect();
            let portions = mine.len().div_ceil(PORTION);
            all.extend((0..portions).map(|portion| Part {
                kind: kind.into(),
                moment,
                seed: options.seed,
                lines: options.lines,
                changes: mine.iter().skip(portion).step_by(portions).cloned().collect(),
            }));
        }
    }
    all
}

/// Tries changes of one kind at one moment: a cluster is brought to that moment, and each change is tried on a copy of it. `tell` is
/// called with each change and what became of it; before it, with the change alone. Errors: the cluster does not come so far.
pub async fn run_part(
    part: &Part,
    mut tell: impl FnMut(&Change, Option<Result<Tried, String>>),
) -> Result<(), String> {
    let all = generate::all()?;
    let kind = schema::kinds().into_iter().find(|kind| *kind == part.kind).ok_or("no such kind")?;
    let runner = Runner { kind, seed: part.seed, lines: part.lines };
    let mut stage = Some(match part.moment {
        Moment::Rollout => runner.in_rollout().await?,
        _ => runner.bring_up().await?,
    });
    for change in all.iter().filter(|change| part.changes.contains(&change.to_string())) {
        tell(change, None);
        match copied().map_err(|error| format!("the process cannot be copied: {error}"))? {
            Copied::Copy(pipe) => {
                let Some(stage) = stage.take() else { return Err("a copy without a cluster".into()) };
                let tried = runner.attempt(stage, change, part.moment).await;
                branch::tell(pipe, &tried);
            }
            Copied::Original(told, status) => {
                let ended = |_| Err(format!("it ended by itself (status {status}), see above"));
                tell(change, Some(serde_json::from_slice(&told).unwrap_or_else(ended)));
            }
        }
    }
    Ok(())
}

/// A cluster with the base in it, and what it is when all is at rest and nothing was changed.
struct Stage {
    ground: World,
    calm: State,
}

struct Runner {
    kind: &'static str,
    seed: u64,
    lines: usize,
}

/// What became of a change, and whether it is not taken back by design.
pub type Tried = (Verdict, bool);

impl Runner {
    fn base(&self) -> Target {
        let base = bases::base(self.kind);
        Target::ours(self.kind, base["metadata"]["name"].as_str().unwrap_or_default())
    }

    /// A new cluster with all that the base needs, at rest, and with the base, which is new.
    async fn begun(&self) -> Result<World, String> {
        let mut ground = World::new(self.seed).await?;
        for object in bases::scene(self.kind) {
            match object {
                Some(object) => must(ground::make(&ground.user(), &object).await?, &object)?,
                None => Ground::settle(&mut ground).await?,
            }
        }
        let base = bases::base(self.kind);
        must(ground::make(&ground.user(), &base).await?, &base)?;
        Ok(ground)
    }

    async fn bring_up(&self) -> Result<Stage, String> {
        let mut ground = self.begun().await?;
        Ground::settle(&mut ground).await?;
        if let Some(problem) = Ground::problems(&ground).first() {
            return Err(format!("before any change: {problem}"));
        }
        let calm = State::read(&Ground::dump(&ground));
        Ok(Stage { ground, calm })
    }

    /// The first pod is there, and none is ready.
    async fn in_rollout(&self) -> Result<Stage, String> {
        // A copy of this process lives through an undisturbed rollout.
        let calm = match copied().map_err(|error| format!("the process cannot be copied: {error}"))? {
            Copied::Copy(pipe) => {
                let dump = match self.bring_up().await {
                    Ok(stage) => Ok(Ground::dump(&stage.ground)),
                    Err(error) => Err(error),
                };
                branch::tell(pipe, &dump);
            }
            Copied::Original(told, status) => serde_json::from_slice::<Result<String, String>>(&told)
                .map_err(|_| format!("the undisturbed rollout ended by itself (status {status})"))??,
        };
        let ground = self.begun().await?;
        let pod = Target::of("v1", "Pod", &holdfast_core::names::pod(&self.base().name, 0));
        sign(&Ground::user(&ground), &pod, |_| true).await?;
        Ok(Stage { ground, calm: State::read(&calm) })
    }

    /// There, and back.
    async fn attempt(&self, mut stage: Stage, change: &Change, moment: Moment) -> Result<Tried, String> {
        let client = Ground::user(&stage.ground);
        let speaker = if change.makes() { change.target.clone() } else { self.base() };
        let before = ground::get(&client, &speaker).await?;
        forbid_image(&stage.ground, change);
        let answer = ground::apply(&client, change).await?;
        if let Answer::Refused { .. } = answer {
            return Ok((judge(change, &answer, None), false));
        }
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
            return Ok((verdict, false));
        }
        let lasting = lasting::why(change).is_some();
        // What an operator says that it cannot put right is said, and Secrets are not its to put right.
        let said = matches!(verdict, Verdict::Stalled(_)) && change.back == Back::Itself;
        if said || lasting::left_alone(change) {
            return Ok((verdict, false));
        }
        let back = ground::revert(&client, change).await?;
        if let Answer::Refused { message, .. } = &back {
            return Ok(if lasting {
                (verdict, true)
            } else {
                (Verdict::Finding(format!("cannot be taken back: {message}")), false)
            });
        }
        let verdict = match self.came_back(&mut stage, change, lasting).await? {
            Some(what) => Verdict::Finding(what),
            None => verdict,
        };
        Ok((verdict, lasting))
    }

    /// What is not as it was, after the way back.
    async fn came_back(
        &self,
        stage: &mut Stage,
        change: &Change,
        lasting: bool,
    ) -> Result<Option<String>, String> {
        if let Err(why) = Ground::settle(&mut stage.ground).await {
            return Ok(Some(format!("never at rest on the way back: {why}")));
        }
        if change.makes() {
            self.tidy(stage).await?;
        }
        let writes = Ground::resync_writes(&mut stage.ground).await;
        if let Some(first) = writes.first() {
            return Ok(Some(format!("{} writes at rest after the way back: {first}", writes.len())));
        }
        if let Some(problem) = Ground::problems(&stage.ground).first() {
            return Ok(Some(format!("after the way back: {problem}")));
        }
        if lasting {
            return Ok(None);
        }
        let mut all = stage.calm.differences(&State::read(&Ground::dump(&stage.ground)));
        all.retain(|line| !lasting::leaves(change, line));
        let shown = all.iter().take(self.lines).map(|line| format!("\n      {line}")).collect::<String>();
        let what = format!("not as before after the way back, {} differences:{shown}", all.len());
        Ok((!all.is_empty()).then_some(what))
    }

    /// Takes away what a made object brought about and what is its user's to take away: Databases and Backups.
    async fn tidy(&self, stage: &mut Stage) -> Result<(), String> {
        let (client, now) = (Ground::user(&stage.ground), State::read(&Ground::dump(&stage.ground)));
        for kind in ["Database", "Backup"] {
            let known = stage.calm.names(kind);
            for name in now.names(kind).into_iter().filter(|name| !known.contains(name)) {
                let target = Target::ours(kind, &name);
                ground::patch(&client, &target, &json!({"spec": {"deletionPolicy": "Delete"}})).await?;
                Ground::settle(&mut stage.ground).await?;
                ground::delete(&client, &target).await?;
                Ground::settle(&mut stage.ground).await?;
            }
        }
        Ok(())
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
async fn see(
    stage: &mut Stage,
    change: &Change,
    speaker: &Target,
    before: Option<&Value>,
) -> Result<Seen, String> {
    let client = Ground::user(&stage.ground);
    let settled = Ground::settle(&mut stage.ground).await;
    let writes = if settled.is_ok() { Ground::resync_writes(&mut stage.ground).await } else { Vec::new() };
    let object = ground::get(&client, speaker).await?;
    let own = |state: State| state.without_spec(&change.target.kind, &change.target.name);
    let elsewhere = own(stage.calm.clone()) != own(State::read(&Ground::dump(&stage.ground)));
    let (then, now) = (before.map(plain), object.as_ref().map(plain));
    let part = |of: &Option<Value>, name: &str| of.as_ref().map(|object| object[name].clone());
    let stored = ["spec", "metadata"].iter().any(|name| part(&then, name) != part(&now, name));
    let effect = elsewhere || part(&then, "status") != part(&now, "status");
    Ok(Seen { settled, object, stored, effect, writes, problems: Ground::problems(&stage.ground) })
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
