//! What the servers say of themselves that concerns streams and lists.

use super::Shape;
use super::push::Pusher;
use crate::sink::Sight;

impl Pusher {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        let _ = (self.shape == Shape::List, self.name.fixed());
        match self.nodes.places().await {
            Ok(places) => vec![Sight::Good(format!("{} servers", places.len()))],
            Err(outage) => vec![Sight::Fault(outage.to_string(), "see to it".to_owned())],
        }
    }
}
