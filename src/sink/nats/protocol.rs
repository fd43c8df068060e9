//! The wire of NATS, pure (NATS documentation, chapter "Client Protocol"): what a server says, and what we say.

use serde::{Deserialize, Serialize};

/// No line of a server is longer; INFO lists the servers of a cluster.
const MAX_LINE: usize = 1 << 20;
/// No message that we ask for is larger.
const MAX_MESSAGE: usize = 4 << 20;

/// What a server says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame<'b> {
    /// About itself: JSON.
    Info(&'b [u8]),
    Message(Message<'b>),
    Ping,
    Pong,
    /// It refuses something; or all, and hangs up.
    Error(&'b str),
    Ok,
}

/// A message to one of our inboxes.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Message<'b> {
    pub(super) subject: &'b str,
    /// With their first line, which holds a status; empty, if none.
    pub(super) headers: &'b [u8],
    pub(super) payload: &'b [u8],
}

impl Message<'_> {
    /// The status of an answer that no service has given: 503, where nobody listens.
    pub(super) fn status(&self) -> Option<u16> {
        let line = self.headers.strip_prefix(b"NATS/1.0 ")?;
        std::str::from_utf8(line.get(..3)?).ok()?.parse().ok()
    }
}

/// What speaks is no NATS server.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotNats;

/// The first frame, and its length; `None`, if it is not whole yet.
pub(super) fn decode(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, NotNats> {
    let Some(end) = memchr::memchr(b'\n', input) else {
        return match input.len() > MAX_LINE {
            true => Err(NotNats),
            false => Ok(None),
        };
    };
    let line = input.get(..end).unwrap_or_default();
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let at = line.iter().position(|b| matches!(b, b' ' | b'\t'));
    let (verb, rest) = line.split_at(at.unwrap_or(line.len()));
    let rest = rest.trim_ascii();
    let plain = |frame| Ok(Some((frame, end + 1)));
    match verb {
        b"MSG" => message(input, rest, end + 1, false),
        b"HMSG" => message(input, rest, end + 1, true),
        b"PING" => plain(Frame::Ping),
        b"PONG" => plain(Frame::Pong),
        b"+OK" => plain(Frame::Ok),
        b"INFO" => plain(Frame::Info(rest)),
        b"-ERR" => {
            let words = std::str::from_utf8(rest).map_err(|_| NotNats)?;
            plain(Frame::Error(words.trim_matches('\'')))
        }
        _ => Err(NotNats),
    }
}

/// `MSG subject sid [reply] size`, or `HMSG subject sid [reply] headers total`, and the bytes.
fn message<'b>(
    input: &'b [u8],
    line: &'b [u8],
    start: usize,
    with_headers: bool,
) -> Result<Option<(Frame<'b>, usize)>, NotNats> {
    let line = std::str::from_utf8(line).map_err(|_| NotNats)?;
    let subject = line.split_ascii_whitespace().next().ok_or(NotNats)?;
    let mut numbers = line.split_ascii_whitespace().rev();
    let mut number = || -> Result<usize, NotNats> {
        let number = numbers.next().ok_or(NotNats)?;
        number.parse().map_err(|_| NotNats)
    };
    let total = number()?;
    let headers = if with_headers { number()? } else { 0 };
    if total > MAX_MESSAGE || headers > total {
        return Err(NotNats);
    }
    let Some(rest) = input.get(start..start + total + 2) else {
        return Ok(None);
    };
    let (content, end) = rest.split_at(total);
    if end != b"\r\n" {
        return Err(NotNats);
    }
    let (headers, payload) = content.split_at(headers);
    let message = Message {
        subject,
        headers,
        payload,
    };
    Ok(Some((Frame::Message(message), start + total + 2)))
}

/// What INFO says that concerns us.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Info {
    pub(super) version: String,
    /// Of headers and body together.
    pub(super) max_payload: usize,
    pub(super) headers: bool,
    pub(super) tls_required: bool,
    pub(super) tls_available: bool,
    /// To be signed, by who logs in with a key.
    pub(super) nonce: String,
    /// It is about to go: lame duck mode.
    pub(super) ldm: bool,
}

/// CONNECT. Holds secrets: no `Debug`.
#[derive(Default, Serialize)]
pub(super) struct Hello {
    pub(super) verbose: bool,
    pub(super) pedantic: bool,
    pub(super) tls_required: bool,
    pub(super) name: &'static str,
    pub(super) lang: &'static str,
    pub(super) version: &'static str,
    /// 1: INFO may come at any time.
    pub(super) protocol: u8,
    pub(super) echo: bool,
    pub(super) headers: bool,
    pub(super) no_responders: bool,
    #[serde(flatten)]
    pub(super) login: Login,
}

/// The part of CONNECT that says who we are. Holds secrets: no `Debug`.
#[derive(Default, Serialize)]
pub(super) struct Login {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) pass: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) auth_token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) jwt: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) nkey: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) sig: Option<String>,
}

/// Appends a message with headers. `headers` is the whole block with its empty line; the body is what the parts make.
pub(super) fn write_publish(
    out: &mut Vec<u8>,
    subject: &str,
    reply: &str,
    headers: &[u8],
    body: &[&[u8]],
) {
    let total = headers.len() + body.iter().map(|part| part.len()).sum::<usize>();
    out.reserve(total + subject.len() + reply.len() + 32);
    let space = if reply.is_empty() { "" } else { " " };
    let line = format!("HPUB {subject} {reply}{space}{} {total}\r\n", headers.len());
    out.extend_from_slice(line.as_bytes());
    out.extend_from_slice(headers);
    for part in body {
        out.extend_from_slice(part);
    }
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says() {
        let message = |subject, headers: &'static str, payload: &'static str| {
            Frame::Message(Message {
                subject,
                headers: headers.as_bytes(),
                payload: payload.as_bytes(),
            })
        };
        for (input, frame) in [
            ("PING\r\n", Frame::Ping),
            ("PONG\r\nPING\r\n", Frame::Pong),
            ("+OK\r\n", Frame::Ok),
            ("INFO {\"a\":1} \r\n", Frame::Info(b"{\"a\":1}")),
            (
                "-ERR 'Stale Connection'\r\n",
                Frame::Error("Stale Connection"),
            ),
            ("MSG a.b 1 0\r\n\r\n", message("a.b", "", "")),
            ("MSG a.b 1 r.x 3\r\na\r\n\r\n", message("a.b", "", "a\r\n")),
            (
                "HMSG a.b 1 16 18\r\nNATS/1.0 503\r\n\r\nok\r\n",
                message("a.b", "NATS/1.0 503\r\n\r\n", "ok"),
            ),
        ] {
            let whole = input.split_inclusive("PING\r\n").next().unwrap_or_default();
            let len = if input.starts_with("PONG") {
                6
            } else {
                whole.len()
            };
            assert_eq!(
                decode(input.as_bytes()),
                Ok(Some((frame, len))),
                "{input:?}"
            );
            for cut in 0..len {
                assert_eq!(
                    decode(&input.as_bytes()[..cut]),
                    Ok(None),
                    "{input:?} {cut}"
                );
            }
        }
    }

    #[test]
    fn what_no_server_says() {
        for input in [
            "HTTP/1.1 400 Bad Request\r\n",
            "\r\n",
            "MSG\r\n",
            "MSG a 1 x\r\n",
            "MSG a 1 -1\r\n",
            "MSG a 1 99999999999\r\n",
            "MSG a 1 2\r\nabXY",
            "HMSG a 1 5 3\r\nabcdefg\r\n",
            "HMSG 3\r\n",
        ] {
            assert_eq!(decode(input.as_bytes()), Err(NotNats), "{input:?}");
        }
        assert_eq!(decode(&vec![b'I'; MAX_LINE + 1]), Err(NotNats));
    }

    #[test]
    fn statuses() {
        let status = |headers: &str| {
            let message = Message {
                subject: "",
                headers: headers.as_bytes(),
                payload: b"",
            };
            message.status()
        };
        assert_eq!(status("NATS/1.0 503\r\n\r\n"), Some(503));
        assert_eq!(status("NATS/1.0 503 No Responders\r\n\r\n"), Some(503));
        assert_eq!(status("NATS/1.0\r\nA: b\r\n\r\n"), None);
        assert_eq!(status("NATS/1.0 5"), None);
        assert_eq!(status(""), None);
    }

    #[test]
    fn a_message_of_ours() {
        let mut out = Vec::new();
        let headers = b"NATS/1.0\r\nA: b\r\n\r\n";
        write_publish(&mut out, "s", "r.1", headers, &[b"ab", b"", b"c"]);
        write_publish(&mut out, "s", "", headers, &[]);
        let text = String::from_utf8(out).unwrap();
        assert_eq!(
            text,
            "HPUB s r.1 18 21\r\nNATS/1.0\r\nA: b\r\n\r\nabc\r\nHPUB s 18 18\r\nNATS/1.0\r\nA: b\r\n\r\n\r\n"
        );
    }
}
