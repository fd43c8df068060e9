//! AMQP 0-9-1 frames (specification, chapter 4.2): written into a buffer, and read from one.

use std::ops::Range;

use crate::envelope::Unfit;

/// A frame of this kind says something.
pub const METHOD: u8 = 1;
/// The properties of a message.
pub const HEADER: u8 = 2;
/// A piece of a message's body.
pub const BODY: u8 = 3;
/// A sign of life.
pub const HEARTBEAT: u8 = 8;

const END: u8 = 0xCE;
/// Kind, channel and length.
const HEAD: usize = 7;
/// What a frame adds to its payload.
pub(super) const FRAME_OVERHEAD: usize = HEAD + 1;

/// The class of messages.
pub(super) const BASIC: u16 = 60;

/// What arrives is no AMQP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Malformed;

/// A frame, as places in the bytes that it was read from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// [`METHOD`], [`HEADER`], [`BODY`] or [`HEARTBEAT`].
    pub kind: u8,
    /// The channel.
    pub channel: u16,
    /// What it holds.
    pub payload: Range<usize>,
    /// Where the next one begins.
    pub end: usize,
}

/// The frame that `input` begins with; `None` while it is not complete.
///
/// # Errors
/// It is none, or its payload is larger than `largest`.
pub fn frame(input: &[u8], largest: usize) -> Result<Option<Frame>, Malformed> {
    let Some(head) = input.first_chunk::<HEAD>() else {
        // A server that speaks another protocol says so in other bytes.
        return match input.first().copied() {
            Some(METHOD | HEADER | BODY | HEARTBEAT) | None => Ok(None),
            Some(_) => Err(Malformed),
        };
    };
    let [kind, c0, c1, l0, l1, l2, l3] = *head;
    let length = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
    if !matches!(kind, METHOD | HEADER | BODY | HEARTBEAT) || length > largest {
        return Err(Malformed);
    }
    let payload = HEAD..HEAD + length;
    match input.get(payload.end) {
        None => Ok(None),
        Some(&END) => Ok(Some(Frame {
            kind,
            channel: u16::from_be_bytes([c0, c1]),
            end: payload.end + 1,
            payload,
        })),
        Some(_) => Err(Malformed),
    }
}

/// Appends a frame, whose payload `write` appends.
pub(super) fn write_frame<T>(
    out: &mut Vec<u8>,
    kind: u8,
    channel: u16,
    write: impl FnOnce(&mut Vec<u8>) -> T,
) -> T {
    let start = out.len();
    write_head(out, kind, channel);
    let written = write(out);
    end_frame(out, start);
    written
}

fn write_head(out: &mut Vec<u8>, kind: u8, channel: u16) {
    out.push(kind);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&[0; 4]);
}

/// Writes the length of the frame that begins at `start` into its head, and its end.
fn end_frame(out: &mut Vec<u8>, start: usize) {
    let length = (out.len() - start - HEAD) as u32;
    put(out, start + HEAD - 4, &length.to_be_bytes());
    out.push(END);
}

fn put(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Appends a message's content: its header, and its body in as many frames as it needs. The length of the body.
///
/// # Errors
/// What `properties` says, or that they are larger than a frame: they cannot be split. The output is then to be cut.
pub(super) fn write_content(
    out: &mut Vec<u8>,
    channel: u16,
    frame_max: usize,
    properties: impl FnOnce(&mut Vec<u8>) -> Result<(), Unfit>,
    body: impl FnOnce(&mut Vec<u8>),
) -> Result<usize, Unfit> {
    let largest = frame_max - FRAME_OVERHEAD;
    let start = out.len();
    let length_at = start + HEAD + 4;
    write_frame(out, HEADER, channel, |out| {
        out.extend_from_slice(&BASIC.to_be_bytes());
        // The weight, which is always 0, and the length of the body, which is not known yet.
        out.extend_from_slice(&[0; 10]);
        properties(out)
    })?;
    let header = out.len() - start - FRAME_OVERHEAD;
    if header > largest {
        return Err(Unfit::new(format!(
            "headers make {header} bytes, and RabbitMQ takes {largest} (frame_max)"
        )));
    }
    let start = out.len();
    write_head(out, BODY, channel);
    let from = out.len();
    body(out);
    let length = out.len() - from;
    put(out, length_at, &(length as u64).to_be_bytes());
    if length == 0 {
        out.truncate(start);
    } else if length <= largest {
        end_frame(out, start);
    } else {
        split(out, start, channel, length, largest);
    }
    Ok(length)
}

/// Makes several frames of the one that begins at `start` and has `length` bytes behind its head, in place: from the last
/// piece to the first, each moves back by what the frames before it add.
fn split(out: &mut Vec<u8>, start: usize, channel: u16, length: usize, largest: usize) {
    let pieces = length.div_ceil(largest);
    let from = start + HEAD;
    out.resize(start + length + pieces * FRAME_OVERHEAD, 0);
    for piece in (0..pieces).rev() {
        let begin = piece * largest;
        let size = largest.min(length - begin);
        let to = from + begin + piece * FRAME_OVERHEAD;
        out.copy_within(from + begin..from + begin + size, to);
        let [c0, c1] = channel.to_be_bytes();
        let [l0, l1, l2, l3] = (size as u32).to_be_bytes();
        put(out, to - HEAD, &[BODY, c0, c1, l0, l1, l2, l3]);
        put(out, to + size, &[END]);
    }
}

/// Reads values from a payload, within its bounds.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or(Malformed)?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    pub(super) fn u8(&mut self) -> Result<u8, Malformed> {
        self.array().map(u8::from_be_bytes)
    }

    pub(super) fn u16(&mut self) -> Result<u16, Malformed> {
        self.array().map(u16::from_be_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Malformed> {
        self.array().map(u32::from_be_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, Malformed> {
        self.array().map(u64::from_be_bytes)
    }

    /// A string of up to 255 bytes.
    pub(super) fn short(&mut self) -> Result<String, Malformed> {
        let length = self.u8()?;
        let text = self.take(length.into())?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// A string, or a table, behind its length in four bytes.
    pub(super) fn long(&mut self) -> Result<&'a [u8], Malformed> {
        let length = self.u32()?;
        self.take(length as usize)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_frame_is_read_once_it_is_complete() {
        let mut out = Vec::new();
        write_frame(&mut out, METHOD, 258, |out| out.extend_from_slice(b"abc"));
        assert_eq!(out, b"\x01\x01\x02\x00\x00\x00\x03abc\xce");
        out.push(BODY);
        let whole = Frame {
            kind: METHOD,
            channel: 258,
            payload: 7..10,
            end: 11,
        };
        for length in 0..out.len() {
            let expected = (length >= whole.end).then_some(whole.clone());
            assert_eq!(frame(&out[..length], 3), Ok(expected), "{length}");
        }
        assert_eq!(frame(&out, 2), Err(Malformed), "too large");
        out[10] = 0;
        assert_eq!(frame(&out, 3), Err(Malformed), "no end");
        for other in [&b"AMQP\x00\x00\x09\x01"[..], b"HTTP/1.1 400", b"-ERR"] {
            assert_eq!(frame(other, 100), Err(Malformed));
        }
    }

    #[test]
    fn properties_must_fit_into_one_frame() {
        let fill = |length: usize| {
            move |out: &mut Vec<u8>| {
                out.resize(out.len() + length, 0);
                Ok(())
            }
        };
        let fits = write_content(&mut Vec::new(), 1, 100, fill(80), |_| ());
        assert_eq!(fits, Ok(0));
        let error = write_content(&mut Vec::new(), 1, 100, fill(81), |_| ()).unwrap_err();
        assert!(error.to_string().contains("93 bytes"), "{error}");
    }

    proptest! {
        #[test]
        fn a_body_of_any_length_comes_apart_and_together(length in 0usize..1000, frame_max in 64usize..300, before in 0usize..20) {
            let body: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let mut out = vec![9; before];
            let written = write_content(
                &mut out, 3, frame_max,
                |out| { out.extend_from_slice(b"\0\0"); Ok(()) },
                |out| out.extend_from_slice(&body),
            );
            prop_assert_eq!(written, Ok(length));
            let mut rest = &out[before..];
            let header = frame(rest, frame_max - FRAME_OVERHEAD).unwrap().unwrap();
            prop_assert_eq!((header.kind, header.channel), (HEADER, 3));
            let mut reader = Reader(&rest[header.payload.clone()]);
            prop_assert_eq!((reader.u16(), reader.u16()), (Ok(BASIC), Ok(0)));
            prop_assert_eq!(reader.u64(), Ok(length as u64));
            rest = &rest[header.end..];
            let mut together = Vec::new();
            while !rest.is_empty() {
                let piece = frame(rest, frame_max - FRAME_OVERHEAD).unwrap().unwrap();
                prop_assert_eq!((piece.kind, piece.channel), (BODY, 3));
                together.extend_from_slice(&rest[piece.payload.clone()]);
                rest = &rest[piece.end..];
            }
            prop_assert_eq!(together, body);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in any::<Vec<u8>>()) {
            let _ = frame(&bytes, 1000);
            let mut reader = Reader(&bytes);
            let _ = reader.short();
            let _ = reader.long();
        }
    }
}
