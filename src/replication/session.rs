//! A session in the message flow of the protocol: frames in, frames out, simple queries.

use std::collections::BTreeMap;

use bytes::{Buf, Bytes, BytesMut};
use postgres_protocol::message::backend::{self, DataRowBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::error::{Context, Error, Place, refuse_notice};
use super::message::ServerMessage;
use super::socket::Socket;

/// No answer of the server before the stream is longer than this; a longer one is not from a Postgres server.
const MAX_FRAME: usize = 16 << 20;

const COPY_BOTH_RESPONSE: u8 = b'W';
const FRAME_HEADER: usize = 5;

/// A connection on which the startup message has been sent, or is about to be.
pub(super) struct Session {
    pub(super) socket: Socket,
    /// What was read and not yet parsed.
    pub(super) buffer: BytesMut,
    pub(super) context: Context,
    pub(super) place: Place,
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) backend_pid: u32,
    /// A query was begun and its end has not been seen.
    unfinished: bool,
}

/// What [`Session::receive`] hands on. Notices and parameters are dealt with inside.
pub(super) enum Incoming {
    Message(Message),
    Error(ServerMessage),
    CopyBoth,
}

impl Session {
    pub(super) fn new(socket: Socket, context: Context) -> Session {
        Session {
            socket,
            buffer: BytesMut::with_capacity(8 << 10),
            context,
            place: Place::Connect,
            parameters: BTreeMap::new(),
            backend_pid: 0,
            unfinished: false,
        }
    }

    pub(super) async fn send(&mut self, frames: &[u8]) -> Result<(), Error> {
        let sent = match self.socket.write_all(frames).await {
            Ok(()) => self.socket.flush().await,
            failed => failed,
        };
        sent.map_err(|e| Error::io(self.place, e).with(&self.context))
    }

    /// The next message that matters to the caller.
    pub(super) async fn receive(&mut self) -> Result<Incoming, Error> {
        loop {
            let message = match self.parse() {
                Ok(Some(Incoming::Message(message))) => message,
                Ok(Some(other)) => return Ok(other),
                Ok(None) => {
                    self.fill().await?;
                    continue;
                }
                Err(e) => return Err(e.with(&self.context)),
            };
            match message {
                Message::NoticeResponse(body) => {
                    let notice = ServerMessage::from_fields(body.fields());
                    tracing::info!(server = %self.context.server, %notice, "notice from Postgres");
                    refuse_notice(self.place, notice).map_err(|e| e.with(&self.context))?;
                }
                Message::ParameterStatus(body) => {
                    if let (Ok(name), Ok(value)) = (body.name(), body.value()) {
                        self.parameters.insert(name.to_owned(), value.to_owned());
                    }
                }
                Message::NotificationResponse(_) => {}
                Message::ErrorResponse(body) => {
                    return Ok(Incoming::Error(ServerMessage::from_fields(body.fields())));
                }
                message => return Ok(Incoming::Message(message)),
            }
        }
    }

    async fn fill(&mut self) -> Result<(), Error> {
        match self.socket.read_buf(&mut self.buffer).await {
            Ok(0) => Err(Error::closed(self.place).with(&self.context)),
            Ok(_) => Ok(()),
            Err(e) => Err(Error::io(self.place, e).with(&self.context)),
        }
    }

    fn parse(&mut self) -> Result<Option<Incoming>, Error> {
        let malformed = |_| Error::protocol(self.place, "the server sent a malformed message");
        let Some(header) = backend::Header::parse(&self.buffer).map_err(malformed)? else {
            return Ok(None);
        };
        // The length counts itself, but not the tag.
        let length = usize::try_from(header.len())
            .ok()
            .filter(|length| *length <= MAX_FRAME)
            .ok_or_else(|| Error::protocol(self.place, "the answer is not a Postgres server's"))?;
        if header.tag() == COPY_BOTH_RESPONSE {
            if self.buffer.len() <= length {
                return Ok(None);
            }
            self.buffer.advance(length.max(FRAME_HEADER - 1) + 1);
            return Ok(Some(Incoming::CopyBoth));
        }
        let message = Message::parse(&mut self.buffer).map_err(malformed)?;
        Ok(message.map(Incoming::Message))
    }

    pub(super) fn failed(&self, message: ServerMessage) -> Error {
        Error::server(self.place, message).with(&self.context)
    }

    pub(super) fn unexpected(&self) -> Error {
        Error::protocol(self.place, "the server sent a message that is out of order")
            .with(&self.context)
    }

    /// Runs one or more statements and returns their rows, as text.
    ///
    /// If the future is dropped before it is done, the session is of no more use.
    pub(super) async fn simple_query(
        &mut self,
        sql: &str,
    ) -> Result<Vec<Vec<Option<String>>>, Error> {
        self.send_query(sql).await?;
        let mut rows = Vec::new();
        let mut failure = None;
        loop {
            match self.receive().await? {
                Incoming::Message(Message::DataRow(row)) => {
                    let row = texts(&row).ok_or_else(|| self.unexpected())?;
                    rows.push(row);
                }
                Incoming::Message(
                    Message::RowDescription(_)
                    | Message::CommandComplete(_)
                    | Message::EmptyQueryResponse,
                ) => {}
                Incoming::Message(Message::ReadyForQuery(_)) => {
                    self.unfinished = false;
                    return match failure {
                        Some(message) => Err(self.failed(message)),
                        None => Ok(rows),
                    };
                }
                // After a fatal one there is no ReadyForQuery.
                Incoming::Error(message) if message.severity != "ERROR" => {
                    return Err(self.failed(message));
                }
                Incoming::Error(message) => failure = Some(message),
                Incoming::Message(_) | Incoming::CopyBoth => return Err(self.unexpected()),
            }
        }
    }

    pub(super) async fn send_query(&mut self, sql: &str) -> Result<(), Error> {
        if self.unfinished {
            return Err(Error::protocol(
                self.place,
                "an earlier query on this session was abandoned",
            )
            .with(&self.context));
        }
        let mut frame = BytesMut::new();
        frontend::query(sql, &mut frame)
            .map_err(|_| Error::refused(self.place, "a query holds a zero byte"))?;
        self.unfinished = true;
        self.send(&frame).await
    }
}

fn texts(row: &DataRowBody) -> Option<Vec<Option<String>>> {
    let buffer: &Bytes = row.buffer_bytes();
    row.ranges()
        .map(|range| {
            Ok(range.map(|range| {
                let value = buffer.get(range).unwrap_or_default();
                String::from_utf8_lossy(value).into_owned()
            }))
        })
        .collect()
        .ok()
}
