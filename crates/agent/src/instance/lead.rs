//! What the holder of the Lease does: be primary, point the Service, keep the synchronous set.

use super::{endpoints, member::Member, roles, sql::Look};
use crate::state::State;
use anyhow::Context;
use holdfast_core::{names, wire::AgentConfig};
use holdfast_postgresql::{
    failover::{Change, Record, Synchronous, admitted, change, next_synchronous},
    settings,
};
use std::time::Duration;
use tokio::time::{Instant, timeout};

/// How often the Service's slice is compared with what it should be.
const POINT_AGAIN: Duration = Duration::from_secs(30);
/// How long that may take.
const CHECK_LIMIT: Duration = Duration::from_secs(2);
/// A standby that stops streaming for less than this stays in a Preferred set: a short break must not flap the set.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long a reload may take to be in force.
const IN_FORCE_LIMIT: Duration = Duration::from_secs(5);
/// How long to wait for standbys to have what was written before a change of the set.
const ARRIVAL_LIMIT: Duration = Duration::from_secs(2);
/// How long the first segment of a new primary may take to end.
const SWITCH_LIMIT: Duration = Duration::from_secs(10);
/// How long a promotion may take.
const PROMOTION_LIMIT: Duration = Duration::from_secs(60);

impl Member {
    /// One turn as the holder.
    pub(super) async fn lead(&mut self, config: &AgentConfig, look: Option<Look>) -> anyhow::Result<()> {
        let record = self.keeper.held().context("the Lease was lost")?;
        let Some(look) = look else {
            if self.postgres.running() == super::postgres::Running::No {
                self.server_ended();
                // A standby's data starts as a standby and is promoted, so that its timeline changes by the rules.
                let standby = self.postgres.is_standby_data();
                self.start(config, "", Some(&record), standby).await?;
            }
            return self.tell(config, None, "starting", "").await;
        };
        if look.recovering {
            return self.promote(config, &record, look.timeline).await;
        }
        if self.memory.led != Some(record.term) {
            return self.begin(config, record, look).await;
        }
        self.accepts_writes();
        self.archiver.know(&look.system_identifier, true);
        // First: the rest of a turn may take seconds, and a volume may fill within them.
        let obeys = self.memory.obeys.clone().unwrap_or_else(|| Synchronous::of(&record));
        self.obey(config, &record, &obeys)?;
        self.memory.obeys = Some(obeys.clone());
        self.guard().await?;
        if self.asked_to_switch(config, &record, &look).await? {
            return Ok(());
        }
        if self.memory.pointed.is_none_or(|at| at.elapsed() > POINT_AGAIN) {
            self.check_service(config, &record).await;
        }
        let record = self.admit(config, record).await?;
        self.keep_synchronous(config, record, obeys, &look).await?;
        let mut report = self.report(config, Some(&look), "", "");
        // Only what the Lease says: on that a takeover relies. While the set changes it may not ask for any confirmation yet.
        let promised = self.keeper.held().filter(|held| held.confirmations > 0);
        let promised = promised.map(|held| held.synchronous).unwrap_or_default();
        report.synchronous = look.streams_to.iter().filter(|s| promised.contains(s)).cloned().collect();
        report.streaming = look.streams_to;
        self.shared.publish(report);
        Ok(())
    }

    async fn promote(&mut self, config: &AgentConfig, record: &Record, own: u32) -> anyhow::Result<()> {
        self.tell(config, None, "promoting", "").await?;
        self.postgres.allot(own, record.timeline)?;
        // Its own synchronous set before it accepts the first commit.
        self.configure(config, "", Some(record))?;
        let work = self.postgres.promote(PROMOTION_LIMIT);
        tokio::pin!(work);
        let began = Instant::now();
        loop {
            tokio::select! {
                result = &mut work => { result?; break }
                () = tokio::time::sleep(Duration::from_millis(500)) => {
                    self.keeper.healthy_for(Duration::from_secs(3));
                    self.shared.beat();
                }
            }
        }
        tracing::info!(took = ?began.elapsed(), "promoted");
        self.memory.hurry = true;
        self.session = None;
        Ok(())
    }

    /// Duties of a new primary, in this order: record what it is, roles, and only then clients.
    async fn begin(&mut self, config: &AgentConfig, record: Record, look: Look) -> anyhow::Result<()> {
        // Each duty has its own limit; together they may take longer than one TTL on slow storage.
        self.keeper.healthy_for(super::member::START_LIMIT);
        self.tell(config, None, "taking up the primary's duties", "").await?;
        // A standby whose data has parted reports its own position at first, and that may lie beyond the fork, within the fork's
        // segment; in a later one it is refused. Commits from here on lie beyond whatever it can report.
        let session = self.session.as_ref().context("no session with the server")?;
        session.execute("select pg_switch_wal()", SWITCH_LIMIT).await.context("beginning a segment")?;
        self.archiver.know(&look.system_identifier, true);
        let actual = Record {
            timeline: look.timeline,
            system_identifier: look.system_identifier.clone(),
            ..record.clone()
        };
        // Before the record says that there is data: whoever reads that wants to connect with these roles.
        roles::ensure(config).await.context("making sure of roles and databases")?;
        if actual != record {
            self.keeper
                .update(config, actual.clone())
                .await
                .context("recording timeline and system identifier")?;
        }
        self.configure(config, "", Some(&actual))?;
        if let Some(state) = State::load(&self.volume)?
            && state.unled
        {
            // From here on commits are acknowledged: it is no longer a copy that may be led without asking.
            State { unled: false, ..state }.store(&self.volume)?;
        }
        self.point(config, &actual).await?;
        self.memory.led = Some(record.term);
        self.memory.lead_since = Some(Instant::now());
        self.accepts_writes();
        // pg_rewind reads the timeline from the source's control file, which only a checkpoint brings up to date.
        tokio::spawn(async {
            if let Ok(session) = crate::sql::local("postgres").await
                && let Err(error) = session.execute("checkpoint", Duration::from_secs(300)).await
            {
                tracing::warn!(error = format!("{error:#}"), "checkpoint after the takeover");
            }
        });
        tracing::info!(term = record.term, timeline = look.timeline, "primary");
        let report = self.report(config, Some(&look), "", "");
        self.shared.publish(report);
        Ok(())
    }

    /// Looks after the Service once more. It points here since the term began: that this cannot be checked, as while the API server is
    /// away, is no reason to serve nobody, nor to keep the turn from saying that the server is well.
    async fn check_service(&mut self, config: &AgentConfig, record: &Record) {
        self.memory.pointed = Some(Instant::now());
        match timeout(CHECK_LIMIT, self.point(config, record)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(error = format!("{error:#}"), "checking the Service"),
            Err(_) => tracing::warn!("checking the Service takes too long: the API server does not answer"),
        }
    }

    /// Names the instances in the Lease that are wanted now. Only those take it, so that all who could are asked when the API server is
    /// away. An older list stays until the new one is written: who is missing in it cannot take the Lease either.
    async fn admit(&mut self, config: &AgentConfig, record: Record) -> anyhow::Result<Record> {
        let wanted: Vec<String> = (0..config.instances).map(|n| names::pod(&config.database, n)).collect();
        let members = admitted(&self.identity.holder.pod, &wanted, &record.synchronous);
        if members == record.members {
            return Ok(record);
        }
        let record = Record { members, ..record };
        self.keeper.update(config, record.clone()).await.context("naming the instances in the Lease")?;
        tracing::info!(members = ?record.members, "instances");
        Ok(record)
    }

    async fn point(&mut self, config: &AgentConfig, record: &Record) -> anyhow::Result<()> {
        let (address, pod) = (&self.identity.address, &self.identity.holder.pod);
        let newer = endpoints::point_here(&self.client, config, address, pod, record.term)
            .await
            .with_context(|| format!("pointing Service {} here", names::service_rw(&config.database)))?;
        if let Some(term) = newer {
            // The Lease was deleted and its terms began anew. Whoever holds it now goes on from what the Service has seen.
            let raised = Record { term: term + 1, ..record.clone() };
            self.keeper.update(config, raised).await.context("raising the term above the Service's")?;
            anyhow::bail!(
                "Service {} was pointed in term {term}; the term is raised",
                names::service_rw(&config.database)
            );
        }
        self.memory.pointed = Some(Instant::now());
        Ok(())
    }

    /// Lets the synchronous set follow the standbys. The Lease never claims more than postgres does at that moment.
    async fn keep_synchronous(
        &mut self,
        config: &AgentConfig,
        record: Record,
        obeys: Synchronous,
        look: &Look,
    ) -> anyhow::Result<()> {
        let now = Instant::now();
        for standby in &look.streams_to {
            self.memory.streamed.insert(standby.clone(), now);
        }
        let lead_since = self.memory.lead_since.unwrap_or(now);
        let ttl = Duration::from_secs(u64::try_from(config.ttl_seconds).unwrap_or(6));
        let streaming: Vec<String> = self
            .memory
            .streamed
            .iter()
            .filter(|(_, at)| at.elapsed() < PATIENCE)
            .map(|(name, _)| name.clone())
            // After a takeover the others need a moment to come over; until then the recorded set stands.
            .chain(record.synchronous.iter().filter(|_| lead_since.elapsed() < ttl * 2).cloned())
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        let wanted: Vec<String> = (0..config.instances)
            .map(|n| names::pod(&config.database, n))
            .filter(|p| *p != self.identity.holder.pod)
            .collect();
        let mode = config.durability.mode;
        let next = next_synchronous(&record, mode, config.durability.standbys, &wanted, &streaming);
        let recorded = (record.synchronous.clone(), record.confirmations);
        let (set, confirmations) = match next {
            None if obeys == Synchronous::of(&record) => return Ok(()),
            next => next.unwrap_or(recorded),
        };
        let goal = Synchronous { members: set, confirmations };
        self.keeper.healthy_for(IN_FORCE_LIMIT * 2);
        let (mut record, mut obeys, mut arrived) = (record, obeys, false);
        if self.memory.unsure {
            // A write whose answer was lost may have landed: postgres obeys nothing that rests on what the Lease no longer says.
            self.keeper.update(config, record.clone()).await.context("recording the synchronous set anew")?;
            self.memory.unsure = false;
        }
        loop {
            match change(&Synchronous::of(&record), &obeys, &goal, arrived) {
                Change::Record(Synchronous { members: synchronous, confirmations }) => {
                    record = Record { synchronous, confirmations, ..record };
                    self.memory.unsure = true;
                    let written = self.keeper.update(config, record.clone()).await;
                    written.context("recording the synchronous set")?;
                    self.memory.unsure = false;
                }
                Change::Obey => {
                    self.obey(config, &record, &goal)?;
                    // Until it does, what it obeyed before counts, and the next turn begins anew with that.
                    self.wait_until_in_force(&goal).await?;
                    self.memory.obeys = Some(goal.clone());
                    obeys = goal.clone();
                }
                // Asked again next turn.
                Change::Arrive if !self.arrived(&goal).await? => return Ok(()),
                Change::Arrive => arrived = true,
                Change::Done => break,
            }
        }
        tracing::info!(synchronous = ?record.synchronous, confirmations, "synchronous set");
        Ok(())
    }

    /// Has postgres wait for this set.
    fn obey(&mut self, config: &AgentConfig, record: &Record, set: &Synchronous) -> anyhow::Result<()> {
        let obeyed =
            Record { synchronous: set.members.clone(), confirmations: set.confirmations, ..record.clone() };
        self.configure(config, "", Some(&obeyed))
    }

    /// Whether as many of the set as must confirm have flushed everything that was written until now. Bounded; asked again next turn.
    async fn arrived(&self, next: &Synchronous) -> anyhow::Result<bool> {
        if next.confirmations < 1 {
            return Ok(true);
        }
        let session = crate::sql::local("postgres").await?;
        let position = session.value("select pg_current_wal_flush_lsn()").await?;
        let position = position.context("the server does not say how far it wrote")?;
        let names: Vec<String> = next.members.iter().map(|s| format!("'{s}'")).collect();
        let question = format!(
            "select count(*) from pg_stat_replication where state = 'streaming' and application_name in ({}) and flush_lsn >= '{position}'",
            names.join(", ")
        );
        let end = Instant::now() + ARRIVAL_LIMIT;
        loop {
            let count: i32 = session.value(&question).await?.and_then(|c| c.parse().ok()).unwrap_or(0);
            if count >= next.confirmations || Instant::now() > end {
                return Ok(count >= next.confirmations);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn wait_until_in_force(&self, set: &Synchronous) -> anyhow::Result<()> {
        let setting = settings::synchronous_standby_names(&set.members, set.confirmations);
        let end = Instant::now() + IN_FORCE_LIMIT;
        let session = crate::sql::local("postgres").await?;
        loop {
            if session.value("show synchronous_standby_names").await?.as_ref() == Some(&setting) {
                // A walsender looks at its configuration at least once in a status interval of a second.
                tokio::time::sleep(Duration::from_secs(1)).await;
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < end,
                "the server did not take up synchronous_standby_names in time"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
