//! The course of the benchmark: settle, cold start, rest, at each size.

use crate::{
    bench::{
        audit::{Counts, Log, Purpose},
        process::{Process, Usage},
        report::{Cold, Goal, Rest, Settled, table},
        seed, world,
    },
    cluster::{Cluster, project, variable},
    wait::{Seen, wait_for},
};
use anyhow::{Context, Result, ensure};
use holdfast_core::{BackupSchedule, BackupStore, Database};
use k8s_openapi::{api::apps::v1::Deployment, jiff::Timestamp};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    time::{Duration, Instant},
};

/// An operator: its ServiceAccount, and how many kinds it watches.
struct Operator {
    name: &'static str,
    kinds: usize,
    port: u16,
}

const DATABASE: Operator = Operator { name: "database-operator", kinds: 13, port: 16451 };
const BACKUP: Operator = Operator { name: "backup-scheduler-operator", kinds: 6, port: 16452 };
const RESTORE: Operator = Operator { name: "restore-operator", kinds: 5, port: 16453 };

/// An operator that made no request and used next to no processor time for so long has come to rest.
const QUIET: Duration = Duration::from_secs(6);
/// How long an operator may take to come to rest after a start.
const START: Duration = Duration::from_secs(600);
/// Megabytes that should suffice at the largest size.
const DATABASE_MIB: u64 = 64;
const BACKUP_MIB: u64 = 96;
/// Schedules that made the Backups.
const SCHEDULES: usize = 100;
/// Seconds within which caches should be filled, at a hundred Databases.
const SYNCED: f64 = 2.0;

/// Seconds within which the backup-scheduler operator should rest after its caches are filled, with all Backups there.
const SETTLED: f64 = 20.0;
/// What is said of Backups that ended while no operator ran.
const UNSEEN: &str = "Backups that ended unseen";

/// How much is measured.
pub struct Sizes {
    /// Databases.
    pub databases: Vec<usize>,
    /// Finished Backups.
    pub backups: usize,
    /// The quiet window at each size.
    pub window: Duration,
    /// The quiet window at the end, which shows whether memory grows.
    pub long_window: Duration,
}

impl Sizes {
    /// Everything: about 25 minutes.
    pub fn full() -> Self {
        Self {
            databases: vec![10, 100, 1000],
            backups: 20_000,
            window: Duration::from_secs(185),
            long_window: Duration::from_secs(600),
        }
    }

    /// To try it: about five minutes.
    pub fn quick() -> Self {
        Self {
            databases: vec![10, 100],
            backups: 1_000,
            window: Duration::from_secs(40),
            long_window: Duration::from_secs(65),
        }
    }
}

struct Bench {
    cluster: Cluster,
    /// Folder of the API server.
    folder: PathBuf,
    /// Folder of the operators' programs.
    programs: PathBuf,
    log: Log,
    begun: Instant,
    settled: Vec<Settled>,
    cold: Vec<Cold>,
    rest: Vec<Rest>,
    complaints: BTreeMap<String, usize>,
}

/// Measures, prints, and says whether every goal was met.
pub async fn run(programs: PathBuf, sizes: Sizes) -> Result<bool> {
    let folder =
        PathBuf::from(variable("BARE").context("BARE is not set: this runs under e2e/cluster/bare")?);
    let cluster = Cluster::connect().await?;
    let mut bench = Bench {
        log: Log::new(folder.join("audit.log")),
        cluster,
        folder,
        programs,
        begun: Instant::now(),
        settled: Vec::new(),
        cold: Vec::new(),
        rest: Vec::new(),
        complaints: BTreeMap::new(),
    };
    bench.install().await?;
    let world = world::run(bench.cluster.client.clone());
    let done = tokio::select! {
        ended = world => ended.context("playing Kubernetes' controllers"),
        done = bench.all(&sizes) => done,
    };
    // What was measured until something failed is worth something, too.
    let met = bench.print(&sizes);
    done.map(|()| met)
}

/// Processors of this machine, and its load.
fn machine() -> String {
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: Vec<&str> = load.split_whitespace().take(1).collect();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{processors} processors, load {}", load.concat())
}

impl Bench {
    fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", self.begun.elapsed().as_secs_f64());
    }

    /// CRDs, rights and Deployments, as a user gets them. Nothing here runs the Deployments; they tell the environment.
    async fn install(&self) -> Result<()> {
        self.say(&format!("{}; API server, operators and this program share them", machine()));
        let deploy = project().join("deploy/dev").display().to_string();
        // CRDs and what needs them come in one go.
        wait_for("deploy/dev to be applied", Duration::from_secs(60), || async {
            self.cluster.kubectl(&["apply", "--server-side", "-k", &deploy]).await.map(Seen::Yes)
        })
        .await?;
        self.cluster
            .kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"])
            .await?;
        Ok(())
    }

    /// The environment that the operator's Deployment gives it.
    async fn environment(&self, operator: &Operator) -> Result<BTreeMap<String, String>> {
        let api = self.cluster.api::<Deployment>(crate::SYSTEM);
        let found = api.get(operator.name).await?;
        let pod = found.spec.and_then(|s| s.template.spec).context("a Deployment without a pod")?;
        let container = pod.containers.into_iter().next().context("a Deployment without a container")?;
        let mut variables = BTreeMap::new();
        for variable in container.env.unwrap_or_default() {
            let path = variable.value_from.and_then(|f| f.field_ref).map(|f| f.field_path);
            let value = match path.as_deref() {
                Some("metadata.namespace") => Some(crate::SYSTEM.to_string()),
                Some("metadata.name") => Some(format!("{}-bench", operator.name)),
                Some(other) => anyhow::bail!("{} is given {other}, which is not known here", operator.name),
                None => variable.value,
            };
            variables.extend(value.map(|value| (variable.name, value)));
        }
        let conf = self.folder.join(format!("{}.conf", operator.name));
        variables.insert("KUBECONFIG".into(), conf.display().to_string());
        // In a pod each has the port to itself.
        variables.insert("HOLDFAST_HTTP_ADDRESS".into(), format!("127.0.0.1:{}", operator.port));
        Ok(variables)
    }

    async fn start(&self, operator: &Operator) -> Result<Process> {
        let variables = self.environment(operator).await?;
        let program = self.programs.join(format!("holdfast-{}", operator.name));
        let log = self.folder.join("log").join(format!("{}.log", operator.name));
        Process::start(operator.name, &program, &variables, log)
    }

    async fn stop(&mut self, processes: Vec<Process>) -> Result<()> {
        for process in processes {
            self.complaints = process
                .complaints()
                .into_iter()
                .map(|(text, n)| (format!("{}: {text}", process.name), n))
                .chain(std::mem::take(&mut self.complaints))
                .collect();
            process.stop().await?;
        }
        Ok(())
    }

    /// Waits until the operators have come to rest and returns since when each rests: since its last request or since it last
    /// used the processor, whichever was later.
    async fn rested(
        &mut self,
        processes: &mut [Process],
        from: Timestamp,
        limit: Duration,
    ) -> Result<Vec<Timestamp>> {
        /// Processor seconds in a fifth of a second: renewals of the Lease and of watches stay below.
        const BUSY: f64 = 0.02;
        let begun = Instant::now();
        let usage = |process: &Process| anyhow::Ok((Timestamp::now(), process.usage()?.cpu));
        let mut last = processes.iter().map(usage).collect::<Result<Vec<_>>>()?;
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            self.log.refresh()?;
            let now = Timestamp::now();
            let mut since = Vec::new();
            for (process, (busy, cpu)) in processes.iter_mut().zip(&mut last) {
                process.check()?;
                let used = process.usage()?.cpu;
                if used - *cpu >= BUSY {
                    *busy = now;
                }
                *cpu = used;
                let requests = self.log.of(process.name, from, Timestamp::MAX);
                let work = requests.filter(|r| r.purpose == Purpose::Work).map(|r| r.at).max();
                since.push(work.map_or(*busy, |at| at.max(*busy)));
            }
            if since.iter().all(|at| now.duration_since(*at).unsigned_abs() >= QUIET) {
                return Ok(since);
            }
            let words = || {
                let words = processes.iter().map(|p| format!("{}: {}", p.name, p.last_words()));
                format!("no rest; last words: {}", words.collect::<Vec<_>>().join("; "))
            };
            ensure!(begun.elapsed() < limit, words());
        }
    }

    /// Waits until the operator's caches are filled and returns how many seconds after its start that was.
    async fn synced(&mut self, operator: &Operator, process: &mut Process) -> Result<f64> {
        let begun = Instant::now();
        loop {
            process.check()?;
            self.log.refresh()?;
            if let Some(at) = self.log.synced(operator.name, operator.kinds, process.started) {
                return Ok(at.duration_since(process.started).as_secs_f64());
            }
            let words = || {
                format!("{} did not fill its caches; its last words: {}", process.name, process.last_words())
            };
            ensure!(begun.elapsed() < START, words());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn all(&mut self, sizes: &Sizes) -> Result<()> {
        let mut before = 0;
        for &size in &sizes.databases {
            self.settle(before..size).await?;
            self.say(&format!("{} finished Restores", size - before));
            seed::restores(&self.cluster.client, before..size).await?;
            let objects = format!("{size} Databases");
            let running = self.cold(&[&DATABASE, &BACKUP, &RESTORE], &objects).await?;
            self.rest(&objects, running, sizes.window).await?;
            before = size;
        }
        let (backups, schedules) = (sizes.backups, SCHEDULES.min(before));
        self.say(&format!("{backups} finished Backups of {schedules} schedules"));
        seed::backups(&self.cluster.client, schedules, backups / schedules.max(1)).await?;
        // Nobody was there when these ended: schedules say so now, run retention, and Databases learn their windows.
        let running = self.cold(&[&BACKUP], &format!("{backups} {UNSEEN}")).await?;
        self.stop(running).await?;
        let objects = format!("{before} Databases, {backups} Backups");
        let running = self.cold(&[&DATABASE, &BACKUP, &RESTORE], &objects).await?;
        self.rest(&objects, running, sizes.long_window).await
    }

    /// Makes Databases, stores and schedules while the operators run, and waits until all are Ready and the operators rest.
    async fn settle(&mut self, numbers: Range<usize>) -> Result<()> {
        let client = self.cluster.client.clone();
        let (before, size) = (numbers.start, numbers.end);
        let mut running = Vec::new();
        for operator in [&DATABASE, &BACKUP] {
            let mut process = self.start(operator).await?;
            self.synced(operator, &mut process).await?;
            running.push(process);
        }
        self.rested(&mut running, Timestamp::now(), START).await?;
        self.say(&format!("{} Databases beside {before}", size - before));
        let from = Timestamp::now();
        seed::namespaces(&client, numbers.clone()).await?;
        seed::databases(&client, numbers).await?;
        self.say("they are created");
        // On a machine that does much else the API server takes a second for what one Database needs.
        let limit = Duration::from_secs(120 + u64::try_from(size)?);
        wait_for("all Databases, BackupStores and BackupSchedules to be Ready", limit, || async {
            let counts = [
                ("Databases", seed::ready::<Database>(&client).await?),
                ("BackupStores", seed::ready::<BackupStore>(&client).await?),
                ("BackupSchedules", seed::ready::<BackupSchedule>(&client).await?),
            ];
            // A look at a thousand of them costs the API server time that the operators need.
            tokio::time::sleep(Duration::from_millis(500 + 5 * u64::try_from(size)?)).await;
            let done = counts.iter().all(|(_, (ready, all))| ready == all) && counts[0].1.1 == size;
            let text = counts.iter().map(|(kind, (ready, all))| format!("{ready} of {all} {kind} are Ready"));
            Ok(if done { Seen::Yes(()) } else { Seen::NotYet(text.collect::<Vec<_>>().join(", ")) })
        })
        .await?;
        self.rested(&mut running, from, START).await?;
        for process in &running {
            let requests = || self.log.of(process.name, from, Timestamp::MAX);
            let last = requests().filter(|r| r.purpose == Purpose::Work).map(|r| r.at).max().unwrap_or(from);
            let settled = Settled {
                operator: process.name,
                databases: (before, size),
                seconds: last.duration_since(from).as_secs_f64(),
                counts: Counts::of(requests()),
                usage: process.usage()?,
            };
            self.say(&format!("{}: settled after {:.1} s", process.name, settled.seconds));
            self.settled.push(settled);
        }
        self.stop(running).await
    }

    /// Starts operators with everything there, one after the other.
    async fn cold(&mut self, operators: &[&Operator], objects: &str) -> Result<Vec<Process>> {
        let mut running = Vec::new();
        for &operator in operators {
            let mut process = self.start(operator).await?;
            let from = process.started;
            let synced = self.synced(operator, &mut process).await?;
            let rested = self.rested(std::slice::from_mut(&mut process), from, START).await?;
            let rested = rested.first().copied().unwrap_or(from);
            let usage = process.usage()?;
            let cold = Cold {
                operator: operator.name,
                objects: objects.into(),
                synced,
                settled: rested.duration_since(from).as_secs_f64(),
                cpu: usage.cpu,
                counts: Counts::of(self.log.of(operator.name, from, Timestamp::MAX)),
                usage,
            };
            self.say(&format!(
                "{}: cold start with {objects}: synced {:.2} s, settled {:.2} s",
                operator.name, cold.synced, cold.settled
            ));
            self.cold.push(cold);
            running.push(process);
        }
        Ok(running)
    }

    /// Watches the operators do nothing.
    async fn rest(&mut self, objects: &str, mut running: Vec<Process>, window: Duration) -> Result<()> {
        // One may still have to answer what another one did at its start.
        self.rested(&mut running, Timestamp::now(), START).await?;
        self.say(&format!("{objects}: rest for {} s", window.as_secs()));
        let from = Timestamp::now();
        let before: Vec<Usage> = running.iter().map(Process::usage).collect::<Result<_>>()?;
        let begun = Instant::now();
        while begun.elapsed() < window {
            tokio::time::sleep(Duration::from_secs(1)).await;
            running.iter_mut().try_for_each(Process::check)?;
        }
        let to = Timestamp::now();
        self.log.refresh()?;
        for (process, before) in running.iter().zip(before) {
            let rest = Rest {
                operator: process.name,
                objects: objects.into(),
                minutes: to.duration_since(from).as_secs_f64() / 60.0,
                counts: Counts::of(self.log.of(process.name, from, to)),
                before,
                after: process.usage()?,
            };
            self.rest.push(rest);
        }
        self.stop(running).await
    }

    fn goals(&self, sizes: &Sizes) -> Vec<Goal> {
        let mut goals: Vec<Goal> = self.rest.iter().map(Rest::quiet).collect();
        let largest = sizes.databases.last().copied().unwrap_or_default();
        let last = |operator: &Operator| self.rest.iter().rfind(|r| r.operator == operator.name);
        if largest >= 1000 {
            let at = format!("{largest} Databases");
            let found = self.rest.iter().find(|r| r.operator == DATABASE.name && r.objects == at);
            goals.extend(found.map(|r| r.below(DATABASE_MIB)));
        }
        if sizes.backups >= 20_000 {
            goals
                .extend(last(&BACKUP).filter(|r| r.objects.contains("Backups")).map(|r| r.below(BACKUP_MIB)));
        }
        goals.extend(self.cold.iter().filter(|c| c.objects == "100 Databases").map(|c| c.within(SYNCED)));
        goals
            .extend(self.cold.iter().rfind(|c| c.operator == BACKUP.name).map(|c| c.settles_within(SETTLED)));
        goals.extend([&DATABASE, &BACKUP, &RESTORE].iter().filter_map(|o| last(o)).map(Rest::steady));
        goals
    }

    /// Prints everything; whether every goal was met.
    fn print(&self, sizes: &Sizes) -> bool {
        println!(
            "\n{}",
            table(&Settled::HEADING, &self.settled.iter().map(Settled::row).collect::<Vec<_>>())
        );
        println!("{}", table(&Cold::HEADING, &self.cold.iter().map(Cold::row).collect::<Vec<_>>()));
        println!("{}", table(&Rest::HEADING, &self.rest.iter().map(Rest::row).collect::<Vec<_>>()));
        println!(
            "Requests are all but those for the leader Lease and watches, which begin anew every minute. \"a database\": with its \
             {} pods, BackupSchedule and its part of a BackupStore for {} Databases. MiB: resident (VmRSS), peak: VmHWM. \
             At rest every Database is Ready, and so are the stores and schedules; nobody renews the primaries' Leases.\n",
            seed::INSTANCES,
            seed::PER_NAMESPACE
        );
        if let Some(settled) = self.settled.iter().rfind(|s| s.operator == DATABASE.name) {
            print_kinds(settled);
        }
        if let Some(settled) = self.settled.iter().rfind(|s| s.operator == BACKUP.name) {
            print_kinds(settled);
        }
        for (text, count) in &self.complaints {
            println!("{count} times {text}");
        }
        println!("{}, {:.1} minutes\n", machine(), self.begun.elapsed().as_secs_f64() / 60.0);
        let goals = self.goals(sizes);
        let row = |goal: &Goal| {
            let verdict = if goal.met { "met" } else { "MISSED" };
            vec![goal.goal.clone(), goal.measured.clone(), verdict.to_string()]
        };
        println!("{}", table(&["goal", "measured", ""], &goals.iter().map(row).collect::<Vec<_>>()));
        goals.iter().all(|goal| goal.met)
    }
}

/// The requests of the last settling by verb and kind, and what was refused.
fn print_kinds(settled: &Settled) {
    let kinds = settled.counts.by_kind();
    let kinds: Vec<String> = kinds.iter().map(|(kind, n)| format!("{kind} {n}")).collect();
    println!("{}, all requests: {}", settled.operator, kinds.join(", "));
    let refused: Vec<String> = settled.counts.refused.iter().map(|(what, n)| format!("{what} {n}")).collect();
    println!("{}, of these answered with an error: {}\n", settled.operator, refused.join(", "));
}
