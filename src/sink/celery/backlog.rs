//! How much work a queue still has.

use std::io::IoSlice;

use super::refusals::outage;
use crate::sink::Outage;
use crate::sink::redis_client::connection::{Connection, Trouble};
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::redis_client::url::Address;

/// kombu's hash of the messages that workers have taken and not yet acknowledged.
const UNACKNOWLEDGED: &[u8] = b"unacked";

/// A look at the queues of a Redis broker, on a connection of its own. The caller bounds every wait.
pub struct Backlog {
    address: Address,
    connection: Connection,
}

impl Backlog {
    /// Connects, without TLS.
    ///
    /// # Errors
    /// The broker cannot be reached, or does not let us in.
    pub async fn open(address: Address) -> Result<Backlog, Outage> {
        match Connection::open(&address, None, &[b"PING"]).await {
            Ok(connection) => Ok(Backlog {
                address,
                connection,
            }),
            Err(trouble) => Err(outage(trouble, &address)),
        }
    }

    /// How many messages wait in a queue's list, or are with workers and not yet acknowledged.
    ///
    /// # Errors
    /// The broker is away, or does not answer with numbers.
    pub async fn unfinished(&mut self, queue: &str) -> Result<u64, Outage> {
        let mut request = Vec::new();
        resp::write_command(&mut request, &[b"LLEN", queue.as_bytes()]);
        resp::write_command(&mut request, &[b"HLEN", UNACKNOWLEDGED]);
        let replies = self.connection.ask(&[IoSlice::new(&request)], 2).await;
        let counted = replies.and_then(|replies| replies.into_iter().map(count).sum());
        counted.map_err(|trouble| outage(trouble, &self.address))
    }
}

fn count(reply: Reply) -> Result<u64, Trouble> {
    match reply {
        Reply::Integer(count) => u64::try_from(count).map_err(|_| Trouble::NotRedis),
        Reply::Error(refusal) => Err(Trouble::Refused(refusal)),
        _ => Err(Trouble::NotRedis),
    }
}
