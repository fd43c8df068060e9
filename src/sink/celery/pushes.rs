//! From tasks to pushes: what each becomes, and to which lists it goes.

use std::collections::{HashMap, HashSet};
use std::io::IoSlice;

use tokio::time::Instant;

use super::redis::Redis;
use super::refusals::{judge, outage};
use super::transaction::Transaction;
use crate::clock;
use crate::envelope::celery::Message;
use crate::outbox::{Field, Task};
use crate::sink::redis_client::connection::{Connection, Trouble};
use crate::sink::redis_client::outcome::Verdict;
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::{Cause, Outage, Outcome};

impl Redis {
    /// Encodes the batch into `self.batch`, and sends what is ready on the way. Returns an outcome per task, as it will be once
    /// all is applied, and the exchanges whose bindings must be asked for first.
    pub(super) async fn encode(
        &mut self,
        tasks: &[Task],
        there: &[bool],
        forbidden: &HashMap<Vec<u8>, Cause>,
        (transaction, connection): (&mut Transaction, &mut Connection),
    ) -> Result<(Vec<Outcome>, HashSet<String>), Trouble> {
        let now = clock::now();
        let mut unknown = HashSet::new();
        let mut outcomes = Vec::with_capacity(tasks.len());
        let mut stopped: HashSet<&[u8]> = HashSet::new();
        self.batch.clear();
        for (index, task) in tasks.iter().enumerate() {
            if there.get(index) == Some(&true) {
                outcomes.push(Outcome::Delivered);
                continue;
            }
            if !stopped.is_empty() && task.key().is_some_and(|key| stopped.contains(key)) {
                outcomes.push(Outcome::Retry(Cause::new(
                    "an earlier task of its key was not delivered",
                )));
                continue;
            }
            let arguments = [Field::Args, Field::Kwargs].map(|field| task.text(field));
            let arguments = arguments.into_iter().flatten().map(str::len).sum();
            let outcome = match Message::new(task, &self.defaults, now) {
                Ok(message) if message.exchange.is_empty() => {
                    let queues = [&*message.routing_key];
                    self.batch.add(
                        &self.lists,
                        &message,
                        (index, arguments),
                        &queues,
                        forbidden,
                    )
                }
                Ok(message) => match self.bindings.get(&*message.exchange) {
                    Some((_, Err(outcome))) => outcome.clone(),
                    Some((_, Ok(bindings))) => {
                        let mut queues: Vec<&str> = bindings
                            .iter()
                            .filter_map(|b| self.lists.bound_queue(b, &message.routing_key))
                            .collect();
                        queues.sort_unstable();
                        queues.dedup();
                        self.batch.add(
                            &self.lists,
                            &message,
                            (index, arguments),
                            &queues,
                            forbidden,
                        )
                    }
                    None => {
                        unknown.insert(message.exchange.into_owned());
                        Outcome::Delivered
                    }
                },
                Err(unfit) => Outcome::Reject(Cause::new(unfit.into_words())),
            };
            if outcome != Outcome::Delivered {
                stopped.extend(task.key());
            }
            outcomes.push(outcome);
            if self.batch.is_worth_sending() && unknown.is_empty() {
                transaction.send(connection, &mut self.batch).await?;
            }
        }
        Ok((outcomes, unknown))
    }

    pub(super) async fn ask_bindings(
        &mut self,
        connection: &mut Connection,
        exchanges: HashSet<String>,
    ) -> Result<(), Outage> {
        let mut request = Vec::new();
        for exchange in &exchanges {
            let key = self.lists.bindings_key(exchange);
            resp::write_command(&mut request, &[b"SMEMBERS", key.as_bytes()]);
        }
        let replies = connection
            .ask(&[IoSlice::new(&request)], exchanges.len())
            .await
            .map_err(|trouble| outage(trouble, &self.address))?;
        let asked = Instant::now();
        for (exchange, reply) in exchanges.into_iter().zip(replies) {
            let bindings = match reply {
                Reply::Array(Some(members)) => Ok(members.into_iter().filter_map(text).collect()),
                Reply::Error(refusal) => {
                    match judge(&refusal, self.lists.bindings_key(&exchange).as_bytes()) {
                        Verdict::KeyRetry(cause) => Err(Outcome::Retry(cause)),
                        Verdict::KeyReject(cause) => Err(Outcome::Reject(cause)),
                        Verdict::Outage(_) => {
                            return Err(outage(Trouble::Refused(refusal), &self.address));
                        }
                    }
                }
                _ => return Err(outage(Trouble::NotRedis, &self.address)),
            };
            self.bindings.insert(exchange, (asked, bindings));
        }
        Ok(())
    }
}

fn text(member: Reply) -> Option<String> {
    match member {
        Reply::Bulk(Some(bytes)) => String::from_utf8(bytes).ok(),
        _ => None,
    }
}
