//! The planned end of a primary: nothing is written any more, every standby that streams has all of it, and one of them is named.

use super::{clock, endpoints, fence, member::Member, postgres::shut_down_at, sql::Look};
use anyhow::Context;
use holdfast_core::wire::AgentConfig;
use holdfast_postgresql::failover::{HandOver, Record, Switchover, successor};
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};

/// How long the checkpoint before a switchover may take.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(45);
/// WAL files that may wait for the store when a switchover begins.
const MOST_BEHIND: i64 = 2;
/// How long the shutdown for a switchover may take: a standby that hangs would keep writers waiting as long.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(20);
/// How long withdrawing from the Service may take. Best effort: the next primary points it anew in any case.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

impl Member {
    /// Stops the server, and kills what is left of it, while the Lease is kept. Returns what keeps it, to be aborted, and whether
    /// the server ended in good order.
    pub(super) async fn shut_down(&mut self, limit: Duration) -> (JoinHandle<()>, bool) {
        self.memory.closed.since = Some(clock::now());
        self.session = None;
        let (keeper, shared) = (self.keeper.clone(), self.shared.clone());
        let alive = tokio::spawn(async move {
            loop {
                keeper.healthy_for(Duration::from_secs(3));
                shared.beat();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let clean = self.postgres.stop(limit).await;
        fence::kill_everything();
        (alive, clean)
    }

    /// What a successor must have. `None`, and then others ask each other: the data says that it was not shut down.
    pub(super) async fn handed_over(&self, to: String, asked: bool) -> Option<HandOver> {
        match shut_down_at(&self.postgres.data()).await {
            Ok(lsn) => {
                let closed =
                    self.memory.closed.since.map_or(Duration::ZERO, |at| clock::now().saturating_sub(at));
                let closed_millis = u64::try_from(closed.as_millis()).unwrap_or(u64::MAX);
                Some(HandOver { to, lsn, asked, closed_millis })
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no hand-over");
                None
            }
        }
    }

    /// Carries out a switchover that is asked for, once. `true`: this turn ends with it.
    pub(super) async fn asked_to_switch(
        &mut self,
        config: &AgentConfig,
        record: &Record,
        look: &Look,
    ) -> anyhow::Result<bool> {
        let Some(asked) = config.switchover.clone() else { return Ok(false) };
        if record.switchover.as_ref().is_some_and(|known| known.asked == asked) {
            return Ok(false);
        }
        let refused = match self.successor_of(&asked, record, look) {
            Ok(None) => String::new(),
            Ok(Some(_)) => {
                // First of all: whatever becomes of it, nobody begins the same again.
                self.say(config, &asked, "").await?;
                match self.switch_over(config, &asked).await? {
                    None => return Ok(true),
                    Some(why) => why,
                }
            }
            Err(why) => why,
        };
        self.say(config, &asked, &refused).await.map(|()| true)
    }

    fn successor_of(&self, asked: &str, record: &Record, look: &Look) -> Result<Option<String>, String> {
        let to = successor(asked, &self.identity.holder.pod, record, &look.streams_to)?;
        // The server's shutdown waits for its archiver.
        let archive = self.archiver.report().unwrap_or_default();
        if to.is_some() && (!archive.error.is_empty() || archive.behind_segments > MOST_BEHIND) {
            return Err(format!(
                "{} WAL files wait for the store: {}",
                archive.behind_segments, archive.error
            ));
        }
        Ok(to)
    }

    /// Records what became of a switchover.
    async fn say(&self, config: &AgentConfig, asked: &str, refused: &str) -> anyhow::Result<()> {
        if !refused.is_empty() {
            tracing::warn!(asked, why = refused, "switchover refused");
        }
        let record = self.keeper.held().context("the Lease was lost")?;
        let switchover = Some(Switchover { asked: asked.into(), refused: refused.into() });
        self.keeper.update(config, Record { switchover, ..record }).await.context("recording the switchover")
    }

    /// `Some`: why there was none. Then the next turn leads as before; a server that was stopped is started again, for the Lease was never
    /// given up.
    async fn switch_over(&mut self, config: &AgentConfig, asked: &str) -> anyhow::Result<Option<String>> {
        tracing::info!(asked, "switchover begins");
        self.tell(config, None, "checkpoint before a switchover", "").await?;
        if let Err(error) = self.checkpoint().await {
            return Ok(Some(format!("the checkpoint before it failed: {error:#}")));
        }
        // That took its time: who streams now?
        let record = self.keeper.held().context("the Lease was lost")?;
        let look = self.look().await.context("the server does not answer")?;
        let to = match self.successor_of(asked, &record, &look) {
            Ok(Some(to)) => to,
            Ok(None) => return Ok(Some(String::new())),
            Err(why) => return Ok(Some(why)),
        };
        self.tell(config, None, &format!("switching over to {to}"), "").await?;
        let withdraw = endpoints::withdraw(&self.client, config, &self.identity.address);
        if let Ok(Err(error)) = timeout(WITHDRAW_LIMIT, withdraw).await {
            tracing::warn!(%error, "withdrawing from the Service");
        }
        let (alive, clean) = self.shut_down(SHUT_DOWN_LIMIT).await;
        self.postgres.collect().await;
        self.memory.led = None;
        self.memory.hurry = true;
        let handed = if clean { self.handed_over(to, true).await } else { None };
        let result = match handed {
            Some(hand_over) => {
                tracing::info!(to = hand_over.to, lsn = %hand_over.lsn, "switchover: handing over");
                self.keeper.release(Some(hand_over)).await.context("handing the Lease over").map(|()| None)
            }
            None => {
                let limit = SHUT_DOWN_LIMIT.as_secs();
                Ok(Some(format!("the server did not shut down in good order within {limit} s")))
            }
        };
        alive.abort();
        result
    }

    /// Makes the one at shutdown, for which writers wait, short.
    async fn checkpoint(&self) -> anyhow::Result<()> {
        self.keeper.healthy_for(CHECKPOINT_LIMIT);
        let session = crate::sql::local("postgres").await?;
        // Not both in one: that would be a transaction.
        session.execute("set statement_timeout = 0", WITHDRAW_LIMIT).await?;
        session.execute("checkpoint", CHECKPOINT_LIMIT).await
    }
}
