//! The AMQP 0-9-1 methods that a publisher and RabbitMQ say to each other (specification, chapter 1; RabbitMQ
//! documentation, "Protocol extensions": confirms, connection.blocked).

use super::wire::{BASIC, METHOD, Malformed, Reader, write_frame};
use crate::envelope::amqp::{write_short, write_table};

const CONNECTION: u16 = 10;
const CHANNEL: u16 = 20;
const EXCHANGE: u16 = 40;
const QUEUE: u16 = 50;
const CONFIRM: u16 = 85;

/// What a server says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Method {
    /// It greets.
    Start {
        /// Its properties, as they are.
        properties: Vec<u8>,
        /// The ways to log in.
        mechanisms: String,
    },
    /// It asks for more than the login needs.
    Secure,
    /// Its limits.
    Tune {
        /// Bytes of a frame; 0 for any.
        frame_max: u32,
        /// Seconds; 0 for none.
        heartbeat: u16,
    },
    /// The virtual host is open.
    ConnectionOpen,
    /// It closes the connection.
    ConnectionClose(Refusal),
    /// It takes no messages for now, and says why.
    Blocked(String),
    /// It takes messages again.
    Unblocked,
    /// A channel is open.
    ChannelOpen,
    /// It asks for a pause, or ends it.
    Flow {
        /// Messages may come.
        active: bool,
    },
    /// It closes the channel.
    ChannelClose(Refusal),
    /// An exchange is there.
    ExchangeThere,
    /// A queue is there.
    QueueThere {
        /// So many messages are in it.
        messages: u32,
    },
    /// What is published on the channel will be confirmed.
    Confirming,
    /// A message comes back; its content follows.
    Return {
        /// Where it had gone.
        exchange: String,
        /// What it had as a routing key.
        routing_key: String,
    },
    /// Messages are confirmed.
    Ack {
        /// Which one.
        tag: u64,
        /// All up to it.
        multiple: bool,
    },
    /// Messages could not be kept.
    Nack {
        /// Which one.
        tag: u64,
        /// All up to it.
        multiple: bool,
    },
}

/// Why a server closes a channel or the connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refusal {
    /// A reply code (specification, chapter 1.1).
    pub code: u16,
    /// In words.
    pub text: String,
}

impl Method {
    /// Reads a method frame's payload. `None` for a method that a publisher need not know.
    ///
    /// # Errors
    /// It ends too early.
    pub fn read(payload: &[u8]) -> Result<Option<Method>, Malformed> {
        let mut reader = Reader(payload);
        let (class, method) = (reader.u16()?, reader.u16()?);
        Ok(Some(match (class, method) {
            (CONNECTION, 10) => {
                reader.take(2)?;
                Method::Start {
                    properties: reader.long()?.to_vec(),
                    mechanisms: String::from_utf8_lossy(reader.long()?).into_owned(),
                }
            }
            (CONNECTION, 20) => Method::Secure,
            (CONNECTION, 30) => {
                reader.take(2)?;
                Method::Tune {
                    frame_max: reader.u32()?,
                    heartbeat: reader.u16()?,
                }
            }
            (CONNECTION, 41) => Method::ConnectionOpen,
            (CONNECTION, 50) => Method::ConnectionClose(refusal(&mut reader)?),
            (CONNECTION, 60) => Method::Blocked(reader.short()?),
            (CONNECTION, 61) => Method::Unblocked,
            (CHANNEL, 11) => Method::ChannelOpen,
            (CHANNEL, 20) => Method::Flow {
                active: reader.u8()? & 1 == 1,
            },
            (CHANNEL, 40) => Method::ChannelClose(refusal(&mut reader)?),
            (EXCHANGE, 11) => Method::ExchangeThere,
            (QUEUE, 11) => {
                reader.short()?;
                Method::QueueThere {
                    messages: reader.u32()?,
                }
            }
            (CONFIRM, 11) => Method::Confirming,
            (BASIC, 50) => {
                reader.u16()?;
                reader.short()?;
                Method::Return {
                    exchange: reader.short()?,
                    routing_key: reader.short()?,
                }
            }
            (BASIC, 80) => Method::Ack {
                tag: reader.u64()?,
                multiple: reader.u8()? & 1 == 1,
            },
            (BASIC, 120) => Method::Nack {
                tag: reader.u64()?,
                multiple: reader.u8()? & 1 == 1,
            },
            _ => return Ok(None),
        }))
    }
}

fn refusal(reader: &mut Reader<'_>) -> Result<Refusal, Malformed> {
    Ok(Refusal {
        code: reader.u16()?,
        text: reader.short()?,
    })
}

/// The header of a message that comes back: the length of its body, and its `message_id`.
///
/// # Errors
/// It ends too early.
pub fn read_content_header(payload: &[u8]) -> Result<(u64, Option<String>), Malformed> {
    let mut reader = Reader(payload);
    reader.take(4)?;
    let length = reader.u64()?;
    let flags = reader.u16()?;
    let has = |bit: u32| flags >> bit & 1 == 1;
    for bit in [15, 14] {
        if has(bit) {
            reader.short()?;
        }
    }
    if has(13) {
        reader.long()?;
    }
    for bit in [12, 11] {
        if has(bit) {
            reader.u8()?;
        }
    }
    for bit in [10, 9, 8] {
        if has(bit) {
            reader.short()?;
        }
    }
    let id = if has(7) { Some(reader.short()?) } else { None };
    Ok((length, id))
}

/// The text of a property in a server's or a client's property table; only the outermost level is looked at.
pub fn property(mut table: &[u8], wanted: &str) -> Option<String> {
    loop {
        let mut reader = Reader(table);
        let name = reader.short().ok()?;
        match reader.u8().ok()? {
            b'S' => {
                let value = reader.long().ok()?;
                if name == wanted {
                    return Some(String::from_utf8_lossy(value).into_owned());
                }
            }
            b'F' => drop(reader.long().ok()?),
            b't' => drop(reader.u8().ok()?),
            _ => return None,
        }
        table = reader.0;
    }
}

fn write(
    out: &mut Vec<u8>,
    channel: u16,
    class: u16,
    method: u16,
    arguments: impl FnOnce(&mut Vec<u8>),
) {
    write_frame(out, METHOD, channel, |out| {
        out.extend_from_slice(&class.to_be_bytes());
        out.extend_from_slice(&method.to_be_bytes());
        arguments(out);
    });
}

/// Appends a short string; a longer one was refused before.
fn short(out: &mut Vec<u8>, text: &str) {
    if write_short(out, text).is_err() {
        out.push(0);
    }
}

fn long(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u32).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// What every connection begins with.
pub(super) const GREETING: &[u8; 8] = b"AMQP\x00\x00\x09\x01";

/// Who we are, and what we understand.
const PROPERTIES: &str = concat!(
    "{\"product\":\"aftercommit\",\"version\":\"",
    env!("CARGO_PKG_VERSION"),
    "\",\"connection_name\":\"aftercommit\",\"capabilities\":{\"authentication_failure_close\":true,\"basic.nack\":true,\
     \"connection.blocked\":true,\"publisher_confirms\":true}}"
);

pub(super) fn start_ok(out: &mut Vec<u8>, mechanism: &str, response: &[u8]) {
    write(out, 0, CONNECTION, 11, |out| {
        // Of our own making: it has a form for each of them.
        let _ = write_table(out, PROPERTIES.as_bytes());
        short(out, mechanism);
        long(out, response);
        short(out, "en_US");
    });
}

pub(super) fn tune_ok(out: &mut Vec<u8>, frame_max: u32, heartbeat: u16) {
    write(out, 0, CONNECTION, 31, |out| {
        // Channels: what we use is one at a time.
        out.extend_from_slice(&8u16.to_be_bytes());
        out.extend_from_slice(&frame_max.to_be_bytes());
        out.extend_from_slice(&heartbeat.to_be_bytes());
    });
}

pub(super) fn open(out: &mut Vec<u8>, vhost: &str) {
    write(out, 0, CONNECTION, 40, |out| {
        short(out, vhost);
        out.extend_from_slice(&[0, 0]);
    });
}

pub(super) fn open_channel(out: &mut Vec<u8>, channel: u16) {
    write(out, channel, CHANNEL, 10, |out| out.push(0));
}

pub(super) fn flow_ok(out: &mut Vec<u8>, channel: u16, active: bool) {
    write(out, channel, CHANNEL, 21, |out| out.push(active.into()));
}

/// Closes a channel, for no fault of its own.
pub(super) fn close_channel(out: &mut Vec<u8>, channel: u16) {
    const SUCCESS: [u8; 2] = 200_u16.to_be_bytes();
    write(out, channel, CHANNEL, 40, |out| {
        out.extend(SUCCESS);
        // No words, and no method that it is about.
        out.extend([0; 5]);
    });
}

pub(super) fn channel_close_ok(out: &mut Vec<u8>, channel: u16) {
    write(out, channel, CHANNEL, 41, |_| ());
}

pub(super) fn confirm_select(out: &mut Vec<u8>, channel: u16) {
    write(out, channel, CONFIRM, 10, |out| out.push(0));
}

/// Asks whether an exchange is there.
pub(super) fn find_exchange(out: &mut Vec<u8>, channel: u16, name: &str) {
    write(out, channel, EXCHANGE, 10, |out| {
        out.extend_from_slice(&[0; 2]);
        short(out, name);
        short(out, "direct");
        // Passive.
        out.push(1);
        long(out, b"");
    });
}

/// Asks whether a queue is there.
pub(super) fn find_queue(out: &mut Vec<u8>, channel: u16, name: &str) {
    declare_queue(out, channel, name, true, b"");
}

/// Declares a queue that is durable, and that expires after no time at all, which RabbitMQ never makes: its refusal says how
/// the queue that is there differs, and durability is what it looks at first.
pub(super) fn ask_durable(out: &mut Vec<u8>, channel: u16, name: &str) {
    declare_queue(out, channel, name, false, b"\x09x-expiresI\x00\x00\x00\x00");
}

fn declare_queue(out: &mut Vec<u8>, channel: u16, name: &str, passive: bool, arguments: &[u8]) {
    write(out, channel, QUEUE, 10, |out| {
        out.extend_from_slice(&[0; 2]);
        short(out, name);
        // Passive, or durable.
        out.push(if passive { 1 } else { 2 });
        long(out, arguments);
    });
}

/// A message is to be published; its content follows. It comes back when no queue is found for it.
pub(super) fn publish(out: &mut Vec<u8>, channel: u16, exchange: &str, routing_key: &str) {
    write(out, channel, BASIC, 40, |out| {
        out.extend_from_slice(&[0; 2]);
        short(out, exchange);
        short(out, routing_key);
        // Mandatory.
        out.push(1);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_understood() {
        for (payload, expected) in [
            (
                &b"\0\x0a\0\x1e\x07\xff\x00\x02\0\0\0\x3c"[..],
                Method::Tune {
                    frame_max: 131_072,
                    heartbeat: 60,
                },
            ),
            (
                b"\0\x0a\0\x32\x01\x40\x09FORCED ok\0\0\0\0",
                Method::ConnectionClose(Refusal {
                    code: 320,
                    text: "FORCED ok".to_owned(),
                }),
            ),
            (b"\0\x0a\0\x3c\x03low", Method::Blocked("low".to_owned())),
            (
                b"\0\x3c\0\x50\0\0\0\0\0\0\0\x07\x01",
                Method::Ack {
                    tag: 7,
                    multiple: true,
                },
            ),
            (
                b"\0\x3c\0\x78\0\0\0\0\0\0\0\x07\0",
                Method::Nack {
                    tag: 7,
                    multiple: false,
                },
            ),
            (
                b"\0\x3c\0\x32\x01\x38\x08NO_ROUTE\x02ex\x01k",
                Method::Return {
                    exchange: "ex".to_owned(),
                    routing_key: "k".to_owned(),
                },
            ),
        ] {
            assert_eq!(Method::read(payload), Ok(Some(expected.clone())));
            for cut in 4..payload.len() {
                let read = Method::read(&payload[..cut]);
                // What stands behind a refusal's text is not needed.
                assert!(
                    read == Err(Malformed) || matches!(expected, Method::ConnectionClose(_)),
                    "{expected:?} cut at {cut}"
                );
            }
        }
        assert_eq!(Method::read(b"\0\x3c\0\x3c"), Ok(None), "a delivery");
    }

    #[test]
    fn a_message_that_comes_back_is_known_by_its_id() {
        let basic = crate::envelope::amqp::Basic {
            content_type: Some("a/b".into()),
            headers: b"{\"x\": [1]}"[..].into(),
            delivery_mode: 2,
            priority: Some(1),
            reply_to: Some("r".into()),
            message_id: "the-id".into(),
            app_id: Some("x".into()),
            ..Default::default()
        };
        let mut header = b"\0\x3c\0\0\0\0\0\0\0\0\0\x09".to_vec();
        basic.write(&mut header).unwrap();
        assert_eq!(
            read_content_header(&header),
            Ok((9, Some("the-id".to_owned())))
        );
        for cut in 0..header.len() - 2 {
            assert_eq!(read_content_header(&header[..cut]), Err(Malformed));
        }
    }

    #[test]
    fn a_server_names_itself() {
        let table = b"\x0ccapabilitiesF\0\0\0\x04\x01at\x01\x07productS\0\0\0\x08RabbitMQ\x01tt\x01\x07versionS\0\0\0\x013";
        assert_eq!(property(table, "version").as_deref(), Some("3"));
        assert_eq!(property(table, "platform"), None);
    }
}
