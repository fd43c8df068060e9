//! A sink that is served one by one: what comes goes into its hands as it makes room, and what is answered is settled at
//! once. A task that takes long holds up its key, and a place in the sink's hands.

use tokio::time::Instant;

use super::stall::STALLS_AFTER;
use super::{BATCH_BYTES, Running, TRIAL_TASKS, at, hear};
use crate::clock;
use crate::delivery::Strain;
use crate::delivery::hands::{Hands, Room, Taken};
use crate::failpoint::{self, Point};
use crate::sink::serving::{Client, Tag, ends};
use crate::sink::{Cause, Outcome, Sink};

/// A sink being served.
struct Serving {
    client: Client,
    hands: Hands,
    /// What the sink may have in its hands, while it is not away.
    most: usize,
    /// When it last had nothing, or answered.
    answered_at: Instant,
    /// The generation of what waits behind tasks in its hands.
    generation: Option<u64>,
}

impl Running {
    /// Serves the sink until the inbox is closed and all that came through it is settled, or nobody listens any more.
    pub(super) async fn serve(&mut self, sink: &mut dyn Sink) {
        while self.serve_until_away(sink).await {}
    }

    /// Whether the sink has gone away, and is to be served again.
    async fn serve_until_away(&mut self, sink: &mut dyn Sink) -> bool {
        let Some(sink) = sink.serves() else {
            return false;
        };
        let most = sink.side_by_side().min(self.in_hands).max(1);
        let (client, server) = ends();
        let mut service = sink.serve(server);
        let mut serving = Serving {
            client,
            hands: Hands::default(),
            most,
            answered_at: Instant::now(),
            generation: self.marking.generation(),
        };
        let end = loop {
            let pause = self.hand_out(&mut serving);
            if *self.strain.borrow() == Strain::Abandons && !serving.hands.is_empty() {
                break None;
            }
            if !self.open && self.queue.is_empty() && serving.hands.is_empty() {
                self.report().await;
                return false;
            }
            let answer = tokio::select! {
                biased;
                permit = self.reports.reserve(), if self.queue.has_report() => {
                    let Ok(permit) = permit else { return false };
                    if let Some(report) = self.queue.take_report() {
                        permit.send(report);
                    }
                    None
                }
                () = self.reports.closed() => return false,
                Some(answer) = serving.client.answer() => Some(answer),
                end = &mut service, if !serving.hands.is_empty() => break Some(end),
                message = self.inbox.recv(), if self.open => {
                    let away = self.away.is_some();
                    match message {
                        Some(message) => hear(&mut self.queue, &mut self.marking, message, away),
                        None => self.open = false,
                    }
                    None
                }
                () = clock::sleep_until(pause), if pause.is_some() => None,
                Ok(()) = self.strain.changed() => None,
            };
            if let Some((tag, outcome)) = answer {
                self.answered(&mut serving, tag, outcome);
                self.hear_answers(&mut serving);
            }
        };
        drop(service);
        self.hear_answers(&mut serving);
        let tags = serving.hands.tags();
        if end.is_none() {
            self.abandons(tags.len());
        }
        for tag in tags {
            if let Some(taken) = serving.hands.give(tag) {
                self.settle(&mut serving, taken, Outcome::Unsent, false);
            }
        }
        self.queue.finish_batch();
        match end {
            Some(Err(cause)) => self.is_away(cause),
            Some(Ok(())) => self.is_away(Cause::new("it has ended")),
            None => {}
        }
        true
    }

    /// Takes in what has come, and hands out what may go. Says when there is more to do, if nothing happens before.
    fn hand_out(&mut self, serving: &mut Serving) -> Option<Instant> {
        self.take_in();
        let generation = self.marking.generation();
        if std::mem::replace(&mut serving.generation, generation) != generation {
            for (task, origin) in serving.hands.drop_behind() {
                self.queue.forget(&task, origin);
            }
        }
        let is_pressed = self.away.is_some() || *self.strain.borrow() > Strain::None;
        let keys = is_pressed.then(|| serving.hands.keys());
        self.spill(&keys.unwrap_or_default());
        let stalls_at = self.spill_beside(serving);
        let room = self.room(serving);
        let now = Instant::now();
        let away = self.away.as_ref();
        let try_at = away.filter(|away| !away.spilled).map(|away| away.next_try);
        if try_at.is_none_or(|at| at <= now) {
            if serving.hands.is_empty() {
                serving.answered_at = now;
            }
            for (tag, task) in serving.hands.take(&mut self.queue, at(), generation, room) {
                serving.client.give(tag, task);
            }
        }
        let spill_at = self.away.as_ref().map(|away| away.spill_at);
        let next = match self.away {
            Some(_) => try_at,
            None => self.queue.next_due().map(Instant::from_std),
        };
        let next = next.filter(|_| serving.hands.have(room));
        // What was due is done: a time that has passed is not waited for.
        let times = [spill_at, stalls_at, next].into_iter().flatten();
        times.filter(|at| *at > now).min()
    }

    fn room(&self, serving: &Serving) -> Room {
        Room {
            tasks: match self.away {
                Some(_) => serving.most.min(TRIAL_TASKS),
                None => serving.most,
            },
            bytes: BATCH_BYTES,
        }
    }

    /// Where the daemon is short of room, what is behind a sink that does not answer goes to the hold. Says when that will
    /// be so.
    fn spill_beside(&mut self, serving: &Serving) -> Option<Instant> {
        let has_room = serving.hands.have(self.room(serving));
        if has_room || *self.strain.borrow() == Strain::None {
            return None;
        }
        let stalls_at = serving.answered_at + STALLS_AFTER;
        if Instant::now() < stalls_at {
            return Some(stalls_at);
        }
        let waits = Cause::new("the sink does not answer");
        let now = Instant::now().into_std();
        self.queue.spill_beside(now, &serving.hands.keys(), &waits);
        None
    }

    fn hear_answers(&mut self, serving: &mut Serving) {
        while let Some((tag, outcome)) = serving.client.try_answer() {
            self.answered(serving, tag, outcome);
        }
    }

    fn answered(&mut self, serving: &mut Serving, tag: Tag, outcome: Outcome) {
        let Some(taken) = serving.hands.give(tag) else {
            return;
        };
        failpoint::reach(Point::Acknowledged);
        serving.answered_at = Instant::now();
        if outcome != Outcome::Unsent {
            self.is_back();
        }
        self.settle(serving, taken, outcome, true);
        self.queue.finish_batch();
    }

    /// What has become of a task, and so of those behind it. `goes_on`: the sink takes another one.
    fn settle(&mut self, serving: &mut Serving, taken: Taken, outcome: Outcome, goes_on: bool) {
        let generation = self.marking.generation();
        let is_void = taken.generation != generation;
        let key = taken.key();
        let is_delivered = outcome == Outcome::Delivered;
        match outcome {
            Outcome::Delivered => {
                let passage = &taken.passage;
                self.queue.delivered(&passage.task, passage.origin);
            }
            _ if is_void => {
                let passage = &taken.passage;
                self.queue.forget(&passage.task, passage.origin);
            }
            outcome => self.outcome(taken.passage, outcome),
        }
        let goes_on = goes_on
            && is_delivered
            && self.away.is_none()
            && *self.strain.borrow() < Strain::Leaves
            && serving.hands.have(self.room(serving))
            && serving.generation == generation;
        if !goes_on {
            return serving.hands.let_go(key, &mut self.queue, at());
        }
        let hands = &mut serving.hands;
        if let Some((tag, task)) = hands.go_on(key, &mut self.queue, at(), generation) {
            serving.client.give(tag, task);
        }
    }
}
