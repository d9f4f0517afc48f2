//! A client that commits one row after the other and remembers which were acknowledged. Afterwards none may be missing.

use crate::{client_pod::ClientPod, database::Db};
use anyhow::{Context, Result, ensure};
use std::{
    collections::BTreeSet,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::Child,
};

/// One acknowledged row: when the answer was seen, and its id.
type Row = (Instant, i64);

/// A client pod's loop that commits a row every 25 ms through `-rw`, reconnecting by itself.
pub struct Writer {
    client: ClientPod,
    database: String,
    child: Child,
    rows: Arc<Mutex<Vec<Row>>>,
}

/// What a writer saw.
pub struct Written {
    /// Ids of acknowledged rows.
    pub ids: Vec<i64>,
    /// Longest time between two acknowledgements.
    pub longest_gap: Duration,
}

impl Writer {
    /// Makes the table `acknowledged` and begins. The client must have been given the login.
    pub async fn start(client: &ClientPod, db: &Db) -> Result<Self> {
        let table = "create table if not exists acknowledged \
                     (id bigint generated always as identity primary key, at timestamptz not null default clock_timestamp())";
        client.psql(db, "rw", table).await?;
        let flag = format!("/tmp/{}.writing", db.name);
        // 20 ms, and what starting `sleep` takes: about a row every 25 ms. The id is printed only when the commit was
        // acknowledged. A dead psql ends the inner loop by its broken pipe.
        let script = format!(
            "touch {flag}; while [ -e {flag} ]; do \
               while [ -e {flag} ]; do echo 'insert into acknowledged default values returning id;'; sleep 0.02; done \
               | psql -XqAt -v ON_ERROR_STOP=1 '{}' 2>/dev/null || true; \
             done",
            client.target(db, "rw")
        );
        let arguments = ["exec", "-n", &client.namespace, &client.name, "--", "sh", "-c", &script];
        let mut command = client.cluster.kubectl_command(&arguments);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().context("kubectl exec")?;
        let output = child.stdout.take().context("kubectl exec has no output")?;
        let rows = Arc::new(Mutex::new(Vec::new()));
        let seen = rows.clone();
        tokio::spawn(async move {
            let mut lines = BufReader::new(output).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                if let Ok(id) = line.trim().parse::<i64>() {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), id));
                }
            }
        });
        let writer = Self { client: client.clone(), database: db.name.clone(), child, rows };
        writer.acknowledged(20, crate::wait::seconds(30)).await?;
        Ok(writer)
    }

    fn rows(&self) -> Vec<Row> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// How many rows were acknowledged so far.
    pub fn count(&self) -> usize {
        self.rows().len()
    }

    /// Waits until so many further rows are acknowledged.
    pub async fn acknowledged(&self, more: usize, limit: Duration) -> Result<()> {
        let goal = self.count() + more;
        crate::wait::until(&format!("{more} further acknowledged rows"), limit, || async {
            let now = self.count();
            Ok((now < goal).then(|| format!("{} of them", now + more - goal)))
        })
        .await
    }

    /// Ends the writer.
    pub async fn stop(mut self) -> Result<Written> {
        self.client.sh(&format!("rm -f /tmp/{}.writing", self.database), "").await?;
        let ended = tokio::time::timeout(Duration::from_secs(20), self.child.wait()).await;
        ended.context("the writer does not end")?.context("the writer")?;
        let rows = self.rows();
        let gaps = rows.windows(2).map(|w| w[1].0.duration_since(w[0].0));
        Ok(Written {
            longest_gap: gaps.max().unwrap_or_default(),
            ids: rows.into_iter().map(|(_, id)| id).collect(),
        })
    }
}

impl Written {
    /// Proves that every acknowledged row is there, seen by the primary.
    pub async fn none_missing(&self, db: &Db) -> Result<()> {
        let there: BTreeSet<i64> = db
            .app()
            .await?
            .rows("select id from acknowledged")
            .await?
            .iter()
            .filter_map(|id| id.parse().ok())
            .collect();
        let missing: Vec<i64> = self.ids.iter().copied().filter(|id| !there.contains(id)).collect();
        ensure!(
            missing.is_empty(),
            "{} of {} acknowledged rows are lost: {:?}",
            missing.len(),
            self.ids.len(),
            missing.iter().take(10).collect::<Vec<_>>()
        );
        let unique: BTreeSet<i64> = self.ids.iter().copied().collect();
        ensure!(unique.len() == self.ids.len(), "an id was acknowledged twice");
        Ok(())
    }
}
