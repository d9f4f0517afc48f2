//! What a member does while another leads: clone, rewind, stream.

use super::{
    fork::Fit,
    member::{Member, upstream},
    postgres::Running,
    sql::Look,
};
use crate::state::State;
use holdfast_core::wire::AgentConfig;
use holdfast_postgresql::failover::{Data, Server, View};
use std::time::Duration;
use tokio::time::Instant;

/// A standby that cannot stream for so long although somebody leads has parted from it: it is rewound or copied anew.
const CUT_OFF_LIMIT: Duration = Duration::from_secs(30);
/// After so many starts that failed a standby's data is rewound, and after twice as many copied anew.
const DEATHS: u32 = 3;

impl Member {
    /// One turn as a follower of `holder`.
    pub(super) async fn follow(
        &mut self,
        config: &AgentConfig,
        view: &View,
        look: Option<Look>,
        holder: &str,
    ) -> anyhow::Result<()> {
        let host = upstream(config, holder);
        let record = view.lease.as_ref();
        let expected = record.map(|r| r.system_identifier.clone()).unwrap_or_default();
        if view.data == Data::Empty {
            if expected.is_empty() {
                return self.tell(config, None, &format!("waiting for {holder} to initialise"), "").await;
            }
            return self.copy(config, &host, holder, &expected).await;
        }
        match view.server {
            Server::Down => {
                // One that dies at each start will not get better by itself.
                let hopeless = self.memory.starts >= DEATHS;
                if self.postgres.is_standby_data() && !hopeless {
                    let upstream = self.upstream_at_start(view, &host).await?;
                    self.start(config, &upstream, None, true).await?;
                } else {
                    self.rewind_and_start(config, view, &host, holder, &expected).await?;
                }
                self.tell(config, None, &format!("starting to follow {holder}"), "").await
            }
            Server::Starting => {
                if self.memory.starting.is_some_and(|since| since.elapsed() > self.start_limit() * 10) {
                    self.postgres.stop(Duration::from_secs(10)).await;
                    self.memory.starting = None;
                }
                self.tell(config, None, &format!("starting to follow {holder}"), "").await
            }
            Server::Standby { streaming, .. } => {
                let Some(look) = look else { return Ok(()) };
                self.archiver.know(&look.system_identifier, false);
                match self.fits(view, &look, &host).await {
                    Fit::Yes => self.configure(config, &host, None)?,
                    Fit::Unknown(doing) => {
                        // Nor from the old one: what still comes from there would part it.
                        self.configure(config, "", None)?;
                        return self
                            .tell(config, Some(&look), &format!("{doing} before it follows {holder}"), "")
                            .await;
                    }
                    Fit::Parted(why) if self.disk_full(Some(&look)).is_some() => {
                        self.configure(config, "", None)?;
                        return self
                            .tell(config, Some(&look), &format!("no room for a rewind: {why}"), "")
                            .await;
                    }
                    Fit::Parted(why) => {
                        tracing::warn!(holder, why, "the data has parted: it is rewound at once");
                        self.session = None;
                        self.postgres.stop(Duration::from_secs(30)).await;
                        return self.rewind_and_start(config, view, &host, holder, &expected).await;
                    }
                }
                if streaming {
                    self.memory.cut_off = None;
                    self.postgres.remove_aside()?;
                    self.mark_unnoticed(config, &look);
                    return self.tell(config, Some(&look), "", "").await;
                }
                let since = *self.memory.cut_off.get_or_insert_with(Instant::now);
                // One without room to receive has not parted, and a copy would need twice as much.
                let full = self.disk_full(Some(&look)).is_some();
                if !full && since.elapsed() > CUT_OFF_LIMIT && self.leader_answers(&host).await {
                    tracing::warn!(
                        holder,
                        "cannot stream although the primary answers: the data has parted from it"
                    );
                    self.memory.cut_off = None;
                    self.session = None;
                    self.postgres.stop(Duration::from_secs(30)).await;
                    return self.rewind_and_start(config, view, &host, holder, &expected).await;
                }
                self.tell(config, Some(&look), &format!("connecting to {holder}"), "").await
            }
            // Never reached: the decision fences instead.
            Server::Primary { .. } => Ok(()),
        }
    }

    /// Makes the data the holder's again, and starts it.
    async fn rewind_and_start(
        &mut self,
        config: &AgentConfig,
        view: &View,
        host: &str,
        holder: &str,
        expected: &str,
    ) -> anyhow::Result<()> {
        if !self.rewind(config, host, holder, expected).await? {
            self.may_follow(view);
            self.start(config, host, None, true).await?;
        }
        Ok(())
    }

    async fn leader_answers(&self, host: &str) -> bool {
        let connect = tokio::net::TcpStream::connect((host, holdfast_core::names::PORT_POSTGRESQL));
        matches!(tokio::time::timeout(Duration::from_secs(2), connect).await, Ok(Ok(_)))
    }

    /// Runs a long step while the main loop's sign of life goes on.
    async fn copy(
        &mut self,
        config: &AgentConfig,
        host: &str,
        holder: &str,
        expected: &str,
    ) -> anyhow::Result<()> {
        self.tell(config, None, &format!("cloning from {holder}"), "").await?;
        self.postgres.clear_leftovers()?;
        self.room_for_copy(host).await?;
        let pod = self.identity.holder.pod.clone();
        if self.postgres.running() == Running::Yes {
            self.session = None;
            self.postgres.stop(Duration::from_secs(30)).await;
        }
        self.write_files(config, host, None)?;
        let began = Instant::now();
        let shared = self.shared.clone();
        let leases = self.lease.clone();
        let result = {
            let work = self.postgres.clone_from(host, config, &pod, expected);
            tokio::pin!(work);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    () = tokio::time::sleep(Duration::from_secs(1)) => {
                        shared.beat();
                        // The primary changed while it was copied from: begin again with the new one.
                        let now = leases.borrow().record.as_ref().and_then(|r| r.holder.as_ref().map(|h| h.pod.clone()));
                        anyhow::ensure!(now.as_deref().is_none_or(|n| n == holder), "{holder} no longer leads: the copy is given up");
                    }
                }
            }
        };
        if let Err(error) = result {
            return Err(self.ended(error).await);
        }
        tracing::info!(took = ?began.elapsed(), holder, "cloned");
        self.start(config, host, None, true).await?;
        self.tell(config, None, &format!("starting to follow {holder}"), "").await
    }

    /// Takes back what parted; when that is impossible, copies anew, with the old data moved aside.
    /// `true`: it was copied, and the server is started already.
    async fn rewind(
        &mut self,
        config: &AgentConfig,
        host: &str,
        holder: &str,
        expected: &str,
    ) -> anyhow::Result<bool> {
        self.room_to("rewind or to copy the data anew")?;
        if self.memory.starts >= 2 * DEATHS {
            tracing::warn!(
                holder,
                "the data cannot be started: copying anew, the old data is kept aside until the copy streams"
            );
            self.memory.starts = 0;
            self.copy(config, host, holder, expected).await?;
            return Ok(true);
        }
        self.tell(config, None, &format!("rewinding to {holder}"), "").await?;
        // What only this member has must reach the archive before it is rewound away.
        self.archiver.know(expected, false);
        self.archiver.drain(Duration::from_secs(20)).await;
        self.write_files(config, host, None)?;
        let pod = self.identity.holder.pod.clone();
        let shared = self.shared.clone();
        let state = State::load(&self.volume)?;
        let result = {
            let work = async {
                // A rewind that stops half-way leaves data that must never be started: while it is done the volume counts as
                // empty, and whatever ends it, the data is then copied anew. So first see that the source is there.
                crate::sql::connect(host, "postgres").await?;
                State::remove(&self.volume)?;
                self.postgres.rewind(host, &pod).await?;
                if let Some(state) = &state {
                    state.store(&self.volume)?;
                }
                anyhow::Ok(())
            };
            tokio::pin!(work);
            loop {
                tokio::select! {
                    result = &mut work => break result,
                    () = tokio::time::sleep(Duration::from_secs(1)) => shared.beat(),
                }
            }
        };
        match result {
            Ok(()) => Ok(false),
            Err(error) => Err(self.ended(error).await),
        }
    }
}
