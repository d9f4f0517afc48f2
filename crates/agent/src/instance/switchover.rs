//! The planned end of a primary: nothing is written any more, every standby that streams has all of it, and one of them is named.

use super::{endpoints, fence, member::Member, postgres::shut_down_at, sql::Look};
use anyhow::Context;
use holdfast_core::wire::AgentConfig;
use holdfast_postgresql::failover::{HandOver, Record, Switchover, successor};
use std::time::Duration;
use tokio::{task::JoinHandle, time::timeout};

/// How long the checkpoint before a switchover may take. It makes the one at shutdown, for which writers wait, short.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(60);
/// How long the shutdown for a switchover may take: a standby that hangs would keep writers waiting as long.
const SHUT_DOWN_LIMIT: Duration = Duration::from_secs(20);
/// How long withdrawing from the Service may take. Best effort: the next primary points it anew in any case.
const WITHDRAW_LIMIT: Duration = Duration::from_secs(2);

impl Member {
    /// Stops the server, and kills what is left of it, while the Lease is kept. Returns what keeps it, to be aborted, and whether
    /// the server ended in good order.
    pub(super) async fn shut_down(&mut self, limit: Duration) -> (JoinHandle<()>, bool) {
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
    pub(super) async fn handed_over(&self, to: String) -> Option<HandOver> {
        match shut_down_at(&self.postgres.data()).await {
            Ok(lsn) => Some(HandOver { to, lsn }),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "no hand-over");
                None
            }
        }
    }

    /// Carries out a switchover that is asked for, once. `true`: this member has stopped leading, or tried to.
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
        let me = self.identity.holder.pod.clone();
        let refused = match successor(&asked, &me, record, &look.streams_to) {
            Ok(Some(to)) => return self.switch_over(config, record, asked, to).await.map(|()| true),
            Ok(None) => String::new(),
            Err(why) => why,
        };
        // The next turn goes on with what was recorded now.
        self.say(config, record, asked, refused).await.map(|()| true)
    }

    /// Records what became of a switchover.
    async fn say(
        &self,
        config: &AgentConfig,
        record: &Record,
        asked: String,
        refused: String,
    ) -> anyhow::Result<()> {
        if !refused.is_empty() {
            tracing::warn!(asked, why = refused, "switchover refused");
        }
        let said = Record { switchover: Some(Switchover { asked, refused }), ..record.clone() };
        self.keeper.update(config, said).await.context("recording the switchover")
    }

    async fn switch_over(
        &mut self,
        config: &AgentConfig,
        record: &Record,
        asked: String,
        to: String,
    ) -> anyhow::Result<()> {
        tracing::info!(asked, to, "switchover begins");
        self.keeper.healthy_for(CHECKPOINT_LIMIT);
        let session = crate::sql::local("postgres").await?;
        session.execute("checkpoint", CHECKPOINT_LIMIT).await.context("checkpoint before the switchover")?;
        drop(session);
        self.tell(config, None, &format!("switching over to {to}"), "").await?;
        let withdraw = endpoints::withdraw(&self.client, config, &self.identity.address);
        if let Ok(Err(error)) = timeout(WITHDRAW_LIMIT, withdraw).await {
            tracing::warn!(%error, "withdrawing from the Service");
        }
        let (alive, clean) = self.shut_down(SHUT_DOWN_LIMIT).await;
        self.postgres.collect().await;
        let handed = if clean { self.handed_over(to).await } else { None };
        // Without a hand-over the next turn starts the server again: the Lease was never given up.
        self.memory.led = None;
        self.memory.hurry = true;
        let result = match handed {
            Some(hand_over) => {
                tracing::info!(to = hand_over.to, lsn = %hand_over.lsn, "switchover: handing over");
                let done = Switchover { asked, refused: String::new() };
                self.keeper.switch_over(hand_over, done).await.context("handing the Lease over")
            }
            None => {
                let limit = SHUT_DOWN_LIMIT.as_secs();
                let why = format!("the server did not shut down in good order within {limit} s");
                self.say(config, record, asked, why).await
            }
        };
        alive.abort();
        result
    }
}
