//! An instance's hold on the Lease: kept in time, or lost together with the server.

use super::{
    instance::Instance,
    lease::{self, Held},
};
use holdfast_postgresql::failover::Record;
use std::time::Duration;
use tokio::time::Instant;

impl Instance {
    /// Fencing is complete before others stop to believe in the Lease.
    pub(super) fn fence_at(&self, held: &Held) -> Instant {
        held.until - Duration::from_secs(u64::try_from(self.config.ttl_seconds).unwrap_or(6)) / 6
    }

    /// Renews the Lease; loses it, and the server with it, when that was not to be done in time.
    pub(super) async fn keep(&mut self) {
        let Some(held) = self.held.clone() else { return };
        let now = Instant::now();
        if now >= self.fence_at(&held) {
            self.agents.with(|world| world.down(&self.key));
            self.holds(None);
            return;
        }
        if now < held.renew {
            return;
        }
        let (pace, time) = (self.agents.pace(), self.host.clock.now());
        let written =
            lease::write(&self.client, &self.config, held.record.clone(), Some(&held.lease), time, pace)
                .await;
        match written {
            Ok(held) => self.holds(Some(held)),
            Err(_) => {
                // Somebody wrote it. If it still names this member, go on from there.
                let again = lease::current(&self.client, &self.config, &held).await;
                let renew = Instant::now() + Duration::from_millis(200);
                self.holds(Some(match again {
                    Some(lease) => Held { lease, renew: now, ..held },
                    None => Held { renew, ..held },
                }));
            }
        }
    }

    /// What this member holds from now on.
    pub(super) fn holds(&mut self, held: Option<Held>) {
        if held.is_none() {
            self.led = None;
        }
        self.held = held;
        let leads = self.held.is_some();
        self.agents.with(|world| {
            if let Some(member) = world.members.get_mut(&self.key) {
                member.leads = leads;
            }
        });
    }

    /// Writes the Lease, anew or in place of what is held. `false`: it was not to be had.
    pub(super) async fn write_lease(&mut self, record: Record) -> bool {
        let previous = self.held.as_ref().map_or_else(|| self.lease.clone(), |held| Some(held.lease.clone()));
        let (pace, now) = (self.agents.pace(), self.host.clock.now());
        match lease::write(&self.client, &self.config, record, previous.as_ref(), now, pace).await {
            Ok(held) => {
                self.holds(Some(held));
                true
            }
            Err(_) => false,
        }
    }

    /// Gives the Lease back.
    pub(super) async fn release(&mut self) {
        if let Some(held) = self.held.clone() {
            let free = Record { holder: None, hand_over: None, ..held.record };
            let (pace, now) = (self.agents.pace(), self.host.clock.now());
            // Who cannot say so leaves others to wait for the TTL.
            let _ = lease::write(&self.client, &self.config, free, Some(&held.lease), now, pace).await;
        }
        self.holds(None);
    }
}
