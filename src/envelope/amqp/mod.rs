//! A message's properties and headers as AMQP 0-9-1 writes them (specification, chapter 4.2; RabbitMQ documentation,
//! "AMQP 0-9-1 Errata"): what a content header holds behind the size of the body.
//!
//! Headers are given as a JSON object and become a field table of the types that py-amqp chooses: string `S`, null `V`,
//! integer `I` (`L` beyond 32 bits), boolean `t`, array `A`, object `F`, other numbers `d`. RabbitMQ reads `l` and `L` alike
//! as signed; older releases of py-amqp read only `L` as signed.

pub mod event;

use std::borrow::Cow;

use super::Unfit;
use super::celery::{self, Message};
use super::json::{self, Dialect, Kind};

/// What a content header tells of a message. An empty text is sent as such; `None` is left out.
#[derive(Default)]
pub struct Basic<'a> {
    /// The body's media type.
    pub content_type: Option<Cow<'a, str>>,
    /// The body's encoding.
    pub content_encoding: Option<Cow<'a, str>>,
    /// A JSON object, checked.
    pub headers: Cow<'a, [u8]>,
    /// 1 (transient) or 2 (persistent).
    pub delivery_mode: u8,
    /// Higher ones first, in queues with `x-max-priority`.
    pub priority: Option<u8>,
    /// What an answer refers to.
    pub correlation_id: Option<Cow<'a, str>>,
    /// Where an answer goes.
    pub reply_to: Option<Cow<'a, str>>,
    /// Milliseconds until the message expires; cut at [`MAX_EXPIRATION`].
    pub expiration: Option<u64>,
    /// The task's id.
    pub message_id: Cow<'a, str>,
    /// Seconds since 1970.
    pub timestamp: Option<u64>,
    /// The kind of message.
    pub kind: Option<Cow<'a, str>>,
    /// The sending application.
    pub app_id: Option<Cow<'a, str>>,
}

/// A persistent message that says all else in its body.
pub fn job(id: &str, priority: Option<u8>) -> Basic<'_> {
    Basic {
        headers: Cow::Borrowed(b"{}"),
        delivery_mode: 2,
        priority,
        message_id: Cow::Borrowed(id),
        ..Basic::default()
    }
}

/// RabbitMQ closes the channel at a longer one.
pub const MAX_EXPIRATION: u64 = u32::MAX as u64;

/// Bytes of a short string, at most; names of exchanges, routing keys, ids and header names are short strings.
const MAX_SHORT: usize = 255;

/// Headers by which RabbitMQ finds further queues: anything but a list of strings there closes the channel.
const COPIES: [&[u8]; 2] = [b"CC", b"BCC"];

impl Basic<'_> {
    /// Appends the flags of the properties, and the properties.
    ///
    /// # Errors
    /// A text that AMQP has no room for, or a header that it has no type for.
    pub fn write(&self, out: &mut Vec<u8>) -> Result<(), Unfit> {
        let start = out.len();
        let mut flags = 0u16;
        out.extend_from_slice(&[0; 2]);
        let mut text = |bit: u16, name: &str, text: &Option<Cow<'_, str>>, out: &mut Vec<u8>| {
            if let Some(text) = text {
                flags |= 1 << bit;
                write_short(out, text).map_err(|words| Unfit::new(format!("{name} {words}")))?;
            }
            Ok::<_, Unfit>(())
        };
        text(15, "content_type", &self.content_type, out)?;
        text(14, "content_encoding", &self.content_encoding, out)?;
        write_table(out, &self.headers)?;
        out.push(self.delivery_mode);
        if let Some(priority) = self.priority {
            out.push(priority);
        }
        text(10, "correlation_id", &self.correlation_id, out)?;
        text(9, "reply_to", &self.reply_to, out)?;
        let expiration = self
            .expiration
            .map(|ms| ms.min(MAX_EXPIRATION).to_string().into());
        text(8, "expiration", &expiration, out)?;
        let id = Some(Cow::Borrowed(&*self.message_id));
        text(7, "id", &id, out)?;
        if let Some(timestamp) = self.timestamp {
            out.extend_from_slice(&timestamp.to_be_bytes());
        }
        text(5, "task", &self.kind, out)?;
        text(3, "app_id", &self.app_id, out)?;
        flags |= 1 << 13 | 1 << 12;
        flags |= u16::from(self.priority.is_some()) << 11;
        flags |= u16::from(self.timestamp.is_some()) << 6;
        if let Some(place) = out.get_mut(start..start + 2) {
            place.copy_from_slice(&flags.to_be_bytes());
        }
        Ok(())
    }
}

/// Appends a short string.
///
/// # Errors
/// It is too long; in words that go behind its name.
pub fn write_short(out: &mut Vec<u8>, text: &str) -> Result<(), String> {
    let length = u8::try_from(text.len())
        .map_err(|_| format!("is longer than the {MAX_SHORT} bytes that AMQP has room for"))?;
    out.push(length);
    out.extend_from_slice(text.as_bytes());
    Ok(())
}

/// Appends a JSON object as a field table.
///
/// # Errors
/// A header that AMQP has no form for.
pub fn write_table(out: &mut Vec<u8>, object: &[u8]) -> Result<(), Unfit> {
    with_length(out, |out| {
        for member in json::members(object, Dialect::Strict) {
            let (name, value) = member.map_err(|defect| Unfit::new(format!("headers {defect}")))?;
            let name = unquoted(name)?;
            if COPIES.contains(&name.as_bytes()) && !is_texts(value) {
                return Err(Unfit::new(format!(
                    "headers.{name} must be a list of strings: RabbitMQ takes it for further routing keys"
                )));
            }
            let shown = || name.chars().take(64).collect::<String>();
            write_short(out, &name)
                .map_err(|words| Unfit::new(format!("a name in headers {words}")))?;
            write_value(out, value)
                .map_err(|words| Unfit::new(format!("headers.{} {words}", shown())))?;
        }
        Ok(())
    })
}

fn write_value(out: &mut Vec<u8>, value: &[u8]) -> Result<(), String> {
    match json::kind(value) {
        Some(Kind::Object) => {
            out.push(b'F');
            write_table(out, value).map_err(|unfit| format!("holds a part that is unfit: {unfit}"))
        }
        Some(Kind::Array) => {
            out.push(b'A');
            with_length(out, |out| {
                for element in json::elements(value, Dialect::Strict) {
                    write_value(out, element.map_err(|defect| defect.to_string())?)?;
                }
                Ok(())
            })
        }
        Some(Kind::String) => {
            let text = json::text(value).ok_or("holds half of a surrogate pair")?;
            out.push(b'S');
            with_length(out, |out| {
                out.extend_from_slice(text.as_bytes());
                Ok(())
            })
        }
        Some(Kind::Number) => write_number(out, value),
        Some(Kind::Boolean) => {
            out.extend_from_slice(&[b't', u8::from(value.trim_ascii() == b"true")]);
            Ok(())
        }
        Some(Kind::Null) => {
            out.push(b'V');
            Ok(())
        }
        None => Err("is not JSON".to_owned()),
    }
}

fn write_number(out: &mut Vec<u8>, value: &[u8]) -> Result<(), String> {
    let text = std::str::from_utf8(value).unwrap_or_default().trim();
    let is_integer = !text.contains(['.', 'e', 'E']);
    if let Ok(small) = text.parse::<i32>() {
        out.push(b'I');
        out.extend_from_slice(&small.to_be_bytes());
    } else if let Ok(large) = text.parse::<i64>() {
        out.push(b'L');
        out.extend_from_slice(&large.to_be_bytes());
    } else if is_integer {
        return Err(
            "has more than the 64 bits of AMQP's integers: write it as a string".to_owned(),
        );
    } else {
        let number = text.parse::<f64>().ok().filter(|number| number.is_finite());
        let number = number.ok_or("is beyond AMQP's numbers: write it as a string")?;
        out.push(b'd');
        out.extend_from_slice(&number.to_be_bytes());
    }
    Ok(())
}

/// Appends what `write` appends, behind its length in four bytes.
fn with_length<E>(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
) -> Result<(), E> {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out)?;
    // A message is far below four gigabytes: Postgres has no larger values.
    let length = (out.len() - start - 4) as u32;
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
    Ok(())
}

fn is_texts(value: &[u8]) -> bool {
    json::kind(value) == Some(Kind::Array)
        && json::elements(value, Dialect::Strict)
            .all(|element| element.is_ok_and(|element| json::text(element).is_some()))
}

/// A member's name as text: it is given as it is written, without its quotes.
fn unquoted(name: &[u8]) -> Result<Cow<'_, str>, Unfit> {
    if !name.contains(&b'\\')
        && let Ok(name) = std::str::from_utf8(name)
    {
        return Ok(Cow::Borrowed(name));
    }
    let quoted = [b"\"", name, b"\""].concat();
    let text = json::text(&quoted).map(Cow::into_owned);
    text.map(Cow::Owned).ok_or(Unfit::new(
        "headers has a name with half of a surrogate pair",
    ))
}

/// The properties of a Celery message. Celery sets no `message_id`; ours is how we know a message that comes back.
///
/// # Errors
/// A ready-made message that has another `message_id` than its row's id, or names a user.
pub fn celery<'m>(message: &'m Message<'_>) -> Result<Basic<'m>, Unfit> {
    let celery::Properties {
        correlation_id,
        reply_to,
        delivery_mode,
        expiration,
        others,
    } = &message.properties;
    let text = |value: Option<&'m [u8]>| value.and_then(json::text);
    let mut basic = Basic {
        content_type: Some(message.content_type().into()),
        content_encoding: Some(message.content_encoding().into()),
        delivery_mode: match delivery_mode {
            Some(b"1") => 1,
            _ => 2,
        },
        priority: Some(message.priority),
        correlation_id: Some(text(*correlation_id).unwrap_or(message.id().into())),
        reply_to: Some(text(*reply_to).unwrap_or_default()),
        expiration: *expiration,
        message_id: message.id().into(),
        ..Basic::default()
    };
    for (name, value) in others {
        let value = text(Some(value));
        match *name {
            b"message_id" if value.as_deref() != Some(message.id()) => {
                return Err(Unfit::new(
                    "options.properties.message_id is not the row's id",
                ));
            }
            b"user_id" => {
                return Err(Unfit::new(
                    "options.properties.user_id is not offered: RabbitMQ refuses all but the connection's own",
                ));
            }
            b"type" => basic.kind = value,
            b"app_id" => basic.app_id = value,
            // What AMQP has no property for, Celery's own client leaves out, too.
            _ => {}
        }
    }
    let mut headers = Vec::new();
    message.write_headers(&mut headers);
    basic.headers = headers.into();
    Ok(basic)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(object: &str) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        write_table(&mut out, object.as_bytes()).map_err(|unfit| unfit.to_string())?;
        let length = out.drain(..4).fold(0, |n, byte| n << 8 | usize::from(byte));
        assert_eq!(length, out.len(), "{object}");
        Ok(out)
    }

    #[test]
    fn each_json_value_has_the_type_that_celerys_client_gives_it() {
        for (object, expected) in [
            ("{}", &b""[..]),
            ("{\"a\":null}", b"\x01aV"),
            (" { \"a\" : true , \"b\": false }", b"\x01at\x01\x01bt\x00"),
            ("{\"a\":7}", b"\x01aI\x00\x00\x00\x07"),
            ("{\"a\":-5}", b"\x01aI\xff\xff\xff\xfb"),
            ("{\"a\":2147483647}", b"\x01aI\x7f\xff\xff\xff"),
            (
                "{\"a\":1099511627776}",
                b"\x01aL\x00\x00\x01\x00\x00\x00\x00\x00",
            ),
            (
                "{\"a\":-2147483649}",
                b"\x01aL\xff\xff\xff\xff\x7f\xff\xff\xff",
            ),
            ("{\"a\":1.5}", b"\x01ad\x3f\xf8\x00\x00\x00\x00\x00\x00"),
            ("{\"a\":1e0}", b"\x01ad\x3f\xf0\x00\x00\x00\x00\x00\x00"),
            (
                "{\"a\":\"x\\n\\u00f3\"}",
                b"\x01aS\x00\x00\x00\x04x\n\xc3\xb3",
            ),
            (
                "{\"a\":[1,\"a\",null]}",
                b"\x01aA\x00\x00\x00\x0cI\x00\x00\x00\x01S\x00\x00\x00\x01aV",
            ),
            ("{\"a\":{\"k\":true}}", b"\x01aF\x00\x00\x00\x04\x01kt\x01"),
            ("{\"\\u0061\":null}", b"\x01aV"),
            (
                "{\"CC\":[\"q\"]}",
                b"\x02CCA\x00\x00\x00\x06S\x00\x00\x00\x01q",
            ),
        ] {
            assert_eq!(table(object).as_deref(), Ok(expected), "{object}");
        }
    }

    #[test]
    fn what_amqp_has_no_form_for_is_named() {
        let long = format!("{{\"{}\":1}}", "n".repeat(256));
        for (object, words) in [
            (
                "{\"a\":9223372036854775808}",
                "headers.a has more than the 64 bits",
            ),
            ("{\"a\":1e999}", "headers.a is beyond"),
            ("{\"a\":[{\"b\":1e999}]}", "headers.a holds a part"),
            ("{\"a\":\"\\ud800\"}", "headers.a holds half"),
            ("{\"\\ud800\":1}", "half of a surrogate"),
            ("{\"CC\":\"q\"}", "headers.CC must be a list"),
            ("{\"BCC\":[1]}", "headers.BCC must be a list"),
            (&long, "a name in headers is longer than the 255 bytes"),
            ("{\"a\":1", "headers is not JSON"),
        ] {
            let error = table(object).unwrap_err();
            assert!(error.contains(words), "{object}: {error}");
        }
    }

    #[test]
    fn flags_say_which_properties_are_there() {
        let mut out = Vec::new();
        let basic = Basic {
            content_type: Some("a/b".into()),
            headers: b"{}"[..].into(),
            delivery_mode: 2,
            message_id: "id".into(),
            ..Basic::default()
        };
        basic.write(&mut out).unwrap();
        assert_eq!(out, b"\xb0\x80\x03a/b\0\0\0\0\x02\x02id");
        out.clear();
        let all = Basic {
            content_encoding: Some("utf-8".into()),
            priority: Some(9),
            correlation_id: Some("c".into()),
            reply_to: Some("".into()),
            expiration: Some(u64::MAX),
            timestamp: Some(1),
            kind: Some("t".into()),
            app_id: Some("app".into()),
            ..basic
        };
        all.write(&mut out).unwrap();
        assert_eq!(
            out,
            b"\xff\xe8\x03a/b\x05utf-8\0\0\0\0\x02\x09\x01c\0\x0a4294967295\x02id\0\0\0\0\0\0\0\x01\x01t\x03app"
        );
        let long = Basic {
            headers: b"{}"[..].into(),
            message_id: "x".repeat(256).into(),
            ..Basic::default()
        };
        let unfit = long.write(&mut Vec::new()).unwrap_err();
        assert!(unfit.to_string().starts_with("id is longer"), "{unfit}");
    }
}
