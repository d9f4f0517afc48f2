//! An operator's process as a child of the benchmark, and what Linux says about it.

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::jiff::Timestamp;
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};
use tokio::{
    process::{Child, Command},
    time::timeout,
};

/// Variables of the allocator that are handed on to operators, to try them out.
const PASSED: [&str; 6] = [
    "GLIBC_TUNABLES",
    "MALLOC_ARENA_MAX",
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_MMAP_THRESHOLD_",
    "TOKIO_WORKER_THREADS",
    "MIMALLOC_PURGE_DELAY",
];
/// How long an operator may take to end: running reconciles have 20 s.
const END: Duration = Duration::from_secs(25);

/// A running operator. It ends with this handle, and with the benchmark.
pub struct Process {
    /// Name of its ServiceAccount.
    pub name: &'static str,
    /// When it was started.
    pub started: Timestamp,
    child: Child,
    pid: u32,
    log: PathBuf,
}

/// What Linux says about a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    /// Resident memory, KiB.
    pub resident: u64,
    /// The most that ever was resident, KiB.
    pub peak: u64,
    /// Processor time, seconds.
    pub cpu: f64,
}

impl Process {
    /// Starts a program with exactly these variables and the allocator's. Its words go to `log`, after those of earlier runs.
    pub fn start(
        name: &'static str,
        program: &Path,
        variables: &BTreeMap<String, String>,
        log: PathBuf,
    ) -> Result<Self> {
        let what = || format!("starting {}", program.display());
        let file = fs::OpenOptions::new().create(true).append(true).open(&log).with_context(what)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(program).env_clear().envs(variables);
        command.envs(PASSED.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))));
        // setpriv is looked for on our own PATH, and then becomes the program, so that this is its process id, too.
        command.env("PATH", std::env::var("PATH").unwrap_or_default());
        command.stdin(Stdio::null()).stderr(file.try_clone().with_context(what)?).stdout(file);
        let started = Timestamp::now();
        let child = command.kill_on_drop(true).spawn().with_context(what)?;
        let pid = child.id().with_context(what)?;
        Ok(Self { name, started, child, pid, log })
    }

    /// Errors when it has ended by itself, with its last words.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            bail!("{} ended by itself: {status}; its last words: {}", self.name, self.last_words());
        }
        Ok(())
    }

    /// What it said last.
    pub fn last_words(&self) -> String {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(10)..].join("\n")
    }

    /// How often it warned or failed, by message.
    pub fn complaints(&self) -> BTreeMap<String, usize> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let mut all = BTreeMap::new();
        for line in text.lines() {
            let Ok(line) = serde_json::from_str::<serde_json::Value>(line) else { continue };
            if matches!(line["level"].as_str(), Some("WARN" | "ERROR")) {
                let of = |key: &str| line[key].as_str().unwrap_or_default().to_string();
                *all.entry(format!("{} {}", of("message"), of("error"))).or_default() += 1;
            }
        }
        all
    }

    /// What it uses now.
    pub fn usage(&self) -> Result<Usage> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid))?;
        let kibibytes = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key));
            let number = line.and_then(|line| line.split_whitespace().next()).context(key.to_string());
            anyhow::Ok(number?.parse::<u64>()?)
        };
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid))?;
        // The program's name may hold anything, and ends with the last parenthesis. Then: state is field 3, utime 14, stime 15.
        let fields: Vec<&str> =
            stat.rsplit_once(')').context("/proc/PID/stat")?.1.split_whitespace().collect();
        let ticks =
            |field: usize| anyhow::Ok(fields.get(field - 3).context("/proc/PID/stat")?.parse::<u32>()?);
        // Linux counts a hundred ticks a second in what it shows.
        let cpu = f64::from(ticks(14)? + ticks(15)?) / 100.0;
        Ok(Usage { resident: kibibytes("VmRSS:")?, peak: kibibytes("VmHWM:")?, cpu })
    }

    /// Ends it as Kubernetes would, so that it lets go of its Lease.
    pub async fn stop(mut self) -> Result<()> {
        let told = Command::new("kill").args(["-TERM", &self.pid.to_string()]).status().await?;
        ensure!(told.success(), "{} could not be told to end", self.name);
        match timeout(END, self.child.wait()).await {
            Ok(status) => {
                ensure!(status?.success(), "{} failed at its end: {}", self.name, self.last_words())
            }
            Err(_) => bail!("{} did not end within {} s", self.name, END.as_secs()),
        }
        Ok(())
    }
}
