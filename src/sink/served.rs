//! A batch, for a sink that takes its tasks one by one.

use super::order::Order;
use super::serving::{Serves, Tag, ends};
use super::{Cause, Outage, Outcome};
use crate::outbox::Task;

/// Serves a sink with a batch, as [`Sink::deliver`](super::Sink::deliver) has it.
pub(super) async fn deliver(sink: &mut dyn Serves, batch: &[Task]) -> Result<Vec<Outcome>, Outage> {
    let room = sink.side_by_side();
    let mut order = Order::new(batch);
    let (mut client, server) = ends();
    let mut service = sink.serve(server);
    let mut in_hands = 0;
    let away = loop {
        while in_hands < room
            && let Some(index) = order.take()
            && let Some(task) = batch.get(index)
        {
            client.give(index as Tag, task.clone());
            in_hands += 1;
        }
        if in_hands == 0 {
            return Ok(order.outcomes());
        }
        tokio::select! {
            biased;
            Some((tag, outcome)) = client.answer() => {
                in_hands -= 1;
                settle(&mut order, tag, outcome);
            }
            end = &mut service => break end.err(),
        }
    };
    while let Some((tag, outcome)) = client.try_answer() {
        settle(&mut order, tag, outcome);
    }
    let cause = away.unwrap_or_else(|| Cause::new("the sink has ended"));
    Err(Outage::new(cause).amid(order.into_known()))
}

fn settle(order: &mut Order, tag: Tag, outcome: Outcome) {
    if let Ok(index) = usize::try_from(tag) {
        order.settle(index, outcome);
    }
}
