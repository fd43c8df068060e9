//! The connection that batches go over: made when it is needed, kept while it does, and asked about the stream.

use tokio::time::timeout;
use uuid::Uuid;

use super::connection::{Connection, Trouble};
use super::flow::Pace;
use super::protocol::Frame;
use super::publisher::Publisher;
use super::stream::{self, Look};
use crate::sink::{Cause, Outage};

/// Asks whether the server is there.
pub(super) const PING: &[u8] = b"PING\r\n";

/// A connection, and what is agreed on it.
pub(super) struct Link {
    pub(super) connection: Connection,
    pub(super) server: String,
    /// Answers come to subjects below this one.
    pub(super) inbox: String,
    /// Number of the last question about the stream.
    pub(super) asked: u64,
    /// Number of the batch, so that late answers to another one are known as such.
    pub(super) batch: u64,
    pub(super) pace: Pace,
}

impl Publisher {
    /// The connection that is there, if it still is, or a new one: to the server that had us last, or the next that will.
    pub(super) async fn connect(&mut self) -> Result<Link, Outage> {
        if let Some(mut link) = self.link.take() {
            // What has come meanwhile: PING, notices; the end.
            if link.hear().await.is_ok() && !link.connection.info.ldm {
                return Ok(link);
            }
        }
        let count = self.servers.len();
        let each = self.timeout / u32::try_from(count).unwrap_or(u32::MAX).max(1);
        let mut last = Outage::new(Cause::new("no server is configured"));
        for n in 0..count {
            let at = (self.first + n) % count;
            let Some(server) = self.servers.get(at) else {
                continue;
            };
            let known = self.known == Some(at);
            let opened = Connection::open(server, &self.manner, known);
            match timeout(each, opened).await {
                Ok(Ok(connection)) => {
                    self.first = at;
                    // One that was not waited for has to show first that it does.
                    self.known = (!known).then_some(at);
                    let name = server.to_string();
                    return Ok(self.agree(connection, name));
                }
                Ok(Err(trouble)) => last = outage(&trouble, &server.to_string()),
                Err(_) => {
                    last = Outage::new(Cause::new(format!(
                        "{server} has not answered within {each:?}"
                    )))
                }
            }
        }
        Err(last)
    }

    /// Asks for answers, and how the stream is made; what is asked here goes out with the first batch.
    fn agree(&self, mut connection: Connection, server: String) -> Link {
        let inbox = format!("{}.{}", self.inbox_prefix, Uuid::new_v4().simple());
        let out = connection.output();
        out.extend_from_slice(format!("SUB {inbox}.> 1\r\n").as_bytes());
        if let Some(stream) = &self.stream {
            stream::write_request(out, &self.api_prefix, stream, &inbox, 0);
        }
        Link {
            connection,
            server,
            inbox,
            asked: 0,
            batch: 0,
            // Until it is known to be one without replicas.
            pace: Pace::SINGLE,
        }
    }

    /// How the stream is made, if it is there and tells.
    pub(super) async fn look_at_stream(&mut self, link: &mut Link) -> Result<Look, Outage> {
        let Some(stream) = &self.stream else {
            return Ok(Look::Unknown("no stream is configured".to_owned()));
        };
        link.asked += 1;
        stream::write_request(
            link.connection.output(),
            &self.api_prefix,
            stream,
            &link.inbox,
            link.asked,
        );
        let looked = timeout(self.timeout, link.look()).await;
        match looked {
            Ok(look) => look.map_err(|trouble| outage(&trouble, &link.server)),
            Err(_) => Ok(Look::Absent(format!(
                "JetStream has not answered within {:?}",
                self.timeout
            ))),
        }
    }
}

impl Link {
    /// Takes what has come unasked; does not wait.
    async fn hear(&mut self) -> Result<(), Trouble> {
        loop {
            let before = self.connection.sent();
            self.connection.glance().await?;
            let mut came = self.connection.sent() != before;
            while let Some(frame) = self.connection.next()? {
                came = true;
                if let Frame::Error(words) = frame
                    && denied(words).is_none()
                {
                    return Err(Trouble::Refused(words.to_owned()));
                }
            }
            if !came {
                return Ok(());
            }
        }
    }

    /// Asks for a PONG.
    pub(super) fn ping(&mut self) {
        self.connection.output().extend_from_slice(PING);
    }

    /// Waits for what the stream says of itself.
    async fn look(&mut self) -> Result<Look, Trouble> {
        loop {
            while let Some(frame) = self.connection.next()? {
                match frame {
                    Frame::Message(message)
                        if stream::answered(message.subject, &self.inbox) == Some(self.asked) =>
                    {
                        return Ok(Look::of(&message));
                    }
                    Frame::Error(words) => match denied(words) {
                        Some(subject) if subject.contains(".STREAM.INFO.") => {
                            let words = format!("we may not publish to {subject}");
                            return Ok(Look::Unknown(words));
                        }
                        Some(_) => {}
                        None => return Err(Trouble::Refused(words.to_owned())),
                    },
                    _ => {}
                }
            }
            self.connection.turn().await?;
        }
    }
}

/// The subject that we may not publish to, if this is what an error is about.
pub(super) fn denied(words: &str) -> Option<&str> {
    let (_, rest) = words.split_once("ermissions Violation for Publish to \"")?;
    rest.split('"').next()
}

pub(super) fn outage(trouble: &Trouble, server: &str) -> Outage {
    Outage::new(Cause::new(match trouble {
        Trouble::Unreachable(e) => format!("{server} cannot be reached: {e}"),
        Trouble::Lost(e) => format!("the connection to {server} broke: {e}"),
        Trouble::Refused(words) => format!("{server} refuses us: {words}"),
        Trouble::Unable(words) => format!("{server}: {words}"),
        Trouble::NotNats => format!("what answers at {server} is no NATS server"),
    }))
}
