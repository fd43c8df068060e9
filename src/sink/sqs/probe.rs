//! What SQS says of a queue that concerns our messages: whether it takes them, and keeps them.

use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;

use super::client::{outage, verdict};
use super::flow::Sqs;
use super::message::MOST_BYTES;
use super::verdict::Verdict;
use crate::sink::{Outage, Sight};

/// A weekend is longer.
const SHORT: Duration = Duration::from_secs(24 * 3600);

impl Sqs {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.ask().await {
            Ok(sights) => sights,
            Err(Outage { cause, .. }) => {
                self.begin_anew();
                vec![Sight::Fault(
                    cause.to_string(),
                    "see to it that region, endpoint_url and credentials are right, and the queue is there".to_owned(),
                )]
            }
        }
    }

    async fn ask(&mut self) -> Result<Vec<Sight>, Outage> {
        let client = self.client().await;
        let Some(name) = self.config.queue.fixed().map(str::to_owned) else {
            let answer = client.list_queues().max_results(1).send().await;
            return match answer.map_err(|error| verdict(&error)) {
                Ok(_) => Ok(vec![Sight::Good("SQS lets us in".to_owned())]),
                // Listing is a right of its own, that is not needed.
                Err(Verdict::Later(_)) => Ok(vec![Sight::Good("SQS answers".to_owned())]),
                Err(verdict) => Err(outage(verdict)),
            };
        };
        let url = self.url(&client, &name).await.map_err(outage)?;
        let request = client.get_queue_attributes().queue_url(url);
        let request = request.attribute_names(QueueAttributeName::All);
        let answer = match request.send().await.map_err(|error| verdict(&error)) {
            Ok(answer) => answer,
            Err(Verdict::Later(cause)) => {
                return Ok(vec![Sight::Risk(
                    format!("the settings of the queue {name} cannot be read: {cause}"),
                    "grant sqs:GetQueueAttributes on the queue".to_owned(),
                )]);
            }
            Err(verdict) => return Err(outage(verdict)),
        };
        let number = |attribute: QueueAttributeName| {
            let value = answer.attributes()?.get(&attribute)?;
            value.parse::<u64>().ok()
        };
        let kept = number(QueueAttributeName::MessageRetentionPeriod).unwrap_or_default();
        let most = number(QueueAttributeName::MaximumMessageSize).unwrap_or_default();
        let mut sights = vec![Sight::Good(format!(
            "the queue {name} lets us in; it keeps messages for {} hours",
            kept / 3600
        ))];
        let mut risk =
            |words: String, remedy: &str| sights.push(Sight::Risk(words, remedy.to_owned()));
        if Duration::from_secs(kept) < SHORT {
            risk(
                format!("the queue {name} drops messages after {kept} seconds, read or not"),
                "set MessageRetentionPeriod to some days; 14 are possible",
            );
        }
        if most > 0 && most < MOST_BYTES as u64 {
            risk(
                format!(
                    "the queue {name} takes messages of {most} bytes at most; larger tasks are held as dead"
                ),
                "set MaximumMessageSize to 1048576, where tasks may be large",
            );
        }
        Ok(sights)
    }
}
