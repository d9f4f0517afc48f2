//! The three operators as processes: started with empty caches, killed in the middle of anything.

use holdfast_backup_scheduler_operator as backups;
use holdfast_database_operator as database;
use holdfast_restore_operator as restores;
use holdfast_runtime::operator::{Clock, Life, Process};
use holdfast_testkit::{Server, Session};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, str::FromStr, sync::Arc};
use tokio::task::JoinHandle;

/// Image of agents and workers.
pub const AGENT: &str = "registry.test/agent:1";

/// One of the operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Operator {
    /// The database operator.
    Database,
    /// The backup-scheduler operator.
    Backups,
    /// The restore operator.
    Restores,
}

impl Operator {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Database, Self::Backups, Self::Restores];

    /// Its name, as in leader Leases and events.
    pub fn name(self) -> &'static str {
        match self {
            Self::Database => "holdfast-database-operator",
            Self::Backups => "holdfast-backup-scheduler-operator",
            Self::Restores => "holdfast-restore-operator",
        }
    }
}

impl fmt::Display for Operator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Database => "database",
            Self::Backups => "backups",
            Self::Restores => "restores",
        })
    }
}

impl FromStr for Operator {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|o| o.to_string() == text).ok_or_else(|| format!("no operator {text:?}"))
    }
}

/// One life of an operator. Dropping it ends the life at once, without a last word.
pub struct Running {
    /// Its requests.
    pub session: Session,
    /// Dropped with this: it ends the background tasks.
    _life: Life,
    task: JoinHandle<()>,
}

impl Running {
    /// Starts an operator that does its requests through `session`.
    pub fn start(which: Operator, server: &Server, session: Session) -> Result<Self, String> {
        session.account();
        let clock = server.clock();
        let clock: Clock = Arc::new(move || clock.now());
        let client = session.client("holdfast-system");
        let made = Process::new(client, which.name(), &format!("{which}-0"), None, clock);
        let (process, life) = made.map_err(|error| error.to_string())?;
        let images: BTreeMap<String, String> =
            ["16", "17"].map(|v| (v.into(), format!("registry.test/postgres:{v}"))).into();
        let agent_image = AGENT.to_string();
        let task = match which {
            Operator::Database => {
                let settings = database::Settings { agent_image, postgres_images: images };
                tokio::spawn(database::run(process, settings))
            }
            Operator::Backups => tokio::spawn(backups::run(process, agent_image)),
            Operator::Restores => {
                tokio::spawn(restores::run(process, restores::Settings { agent_image, images }))
            }
        };
        Ok(Self { session, _life: life, task })
    }

    /// Whether this life is over: a fault killed it, or it ended by itself.
    pub fn is_over(&self) -> bool {
        self.session.is_dead() || self.task.is_finished()
    }

    /// Whether it ended by itself, which no operator may do.
    pub fn ended_by_itself(&self) -> bool {
        self.task.is_finished() && !self.session.is_dead()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.session.kill();
        self.task.abort();
    }
}
