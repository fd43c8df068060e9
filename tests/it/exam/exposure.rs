//! What was delivered and not confirmed when a daemon died: that may come twice, and nothing else.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::trial::Trial;
use crate::support::exam::IN_FLIGHT;

/// A status update every 100 ms; the rest is for a busy machine.
const UNCONFIRMED: Duration = Duration::from_secs(1);

/// Follows deliveries from death to death.
#[derive(Default)]
pub(super) struct Exposure {
    /// Ids that may come again, with their positions.
    exposed: HashMap<String, u64>,
    seen: HashSet<String>,
    /// Deliveries that were looked at.
    looked: usize,
    /// How many may have come again in all: the sum over all deaths.
    pub(super) allowed: usize,
}

impl Exposure {
    /// A daemon that lived from `born` on has died just now; the server lives, and knows what is confirmed.
    pub(super) async fn death(&mut self, trial: &mut Trial, born: Instant) {
        let died = Instant::now();
        let confirmed = trial.exam.confirmed_at_rest().await;
        trial.wait_for_the_last().await;
        self.death_at(trial, born..died, confirmed, UNCONFIRMED)
            .await;
    }

    /// As [`death`](Exposure::death), with what is confirmed, and how long it may take until something is.
    pub(super) async fn death_at(
        &mut self,
        trial: &mut Trial,
        life: std::ops::Range<Instant>,
        confirmed: u64,
        within: Duration,
    ) {
        let count = trial.deliveries().await.len();
        let recent = count - trial.at(life.end - within);
        // A life shorter than that may have confirmed nothing at all.
        let earlier = match life.end - life.start < within {
            true => self.exposed.len(),
            false => 0,
        };
        let mut unexpected = 0;
        for delivery in &trial.deliveries().await[self.looked..count] {
            if !self.seen.insert(delivery.id.clone()) && !self.exposed.contains_key(&delivery.id) {
                unexpected += 1;
            }
        }
        trial.sheet.count("confirmed and again", unexpected, 0);
        for delivery in &trial.deliveries().await[self.looked..count] {
            self.exposed.insert(delivery.id.clone(), delivery.lsn);
        }
        self.exposed.retain(|_, lsn| *lsn >= confirmed);
        self.looked = count;
        let most = IN_FLIGHT + recent + earlier;
        trial.sheet.count("unconfirmed", self.exposed.len(), most);
        self.allowed += self.exposed.len();
    }
}
