//! What an AMQP server says: any bytes are read or refused, whole or in pieces, and what was read is what was there.

use aftercommit::sink::amqp::method::{Method, Refusal, property, read_content_header};
use aftercommit::sink::amqp::wire::{HEADER, METHOD, frame};

/// Longer payloads are refused.
const LARGEST: usize = 4096;

/// Reads any bytes as a row of frames, and what they hold.
pub(super) fn check(input: &[u8]) {
    let mut rest = input;
    while let Ok(Some(read)) = frame(rest, LARGEST) {
        assert!(read.payload.len() <= LARGEST);
        assert_eq!((read.payload.start, read.payload.end + 1), (7, read.end));
        // A part of it is a part of a frame, and what follows does not matter.
        for cut in [0, 1, 6, 7, read.end / 2, read.end - 1] {
            assert_eq!(frame(&rest[..cut.min(read.end - 1)], LARGEST), Ok(None));
        }
        assert_eq!(
            frame(&rest[..read.end], LARGEST).as_ref(),
            Ok(&Some(read.clone()))
        );
        assert_eq!(
            frame(rest, read.payload.len()).as_ref(),
            Ok(&Some(read.clone()))
        );

        let payload = &rest[read.payload.clone()];
        let mut written = vec![read.kind];
        written.extend(read.channel.to_be_bytes());
        written.extend((payload.len() as u32).to_be_bytes());
        written.extend(payload);
        written.push(0xCE);
        assert_eq!(written, rest[..read.end]);
        match read.kind {
            METHOD => method(payload),
            HEADER => header(payload),
            _ => {}
        }
        rest = &rest[read.end..];
    }
    method(input);
    header(input);
    if let Some(text) = property(input, "version") {
        assert!(text.len() <= 3 * input.len());
    }
}

fn method(payload: &[u8]) {
    let Ok(Some(method)) = Method::read(payload) else {
        return;
    };
    if let Some(written) = write(&method) {
        assert!(payload.len() >= written.len());
        // Behind a bit there is room for seven others.
        let differs = written
            .iter()
            .zip(payload)
            .filter(|(ours, theirs)| ours != theirs);
        assert!(differs.count() <= 1, "{method:?}");
    }
    if let Method::Start { properties, .. } = &method {
        property(properties, "product");
    }
}

/// The beginning of a method: what is read of it. `None` where a text was no UTF-8, or something before it is not kept.
fn write(method: &Method) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut put = |class: u16, method: u16, parts: &[&[u8]]| {
        out.extend(class.to_be_bytes());
        out.extend(method.to_be_bytes());
        parts.iter().for_each(|part| out.extend(*part));
    };
    match method {
        Method::ConnectionClose(refusal) => {
            put(10, 50, &refused(refusal)?.each_ref().map(Vec::as_slice))
        }
        Method::ChannelClose(refusal) => {
            put(20, 40, &refused(refusal)?.each_ref().map(Vec::as_slice))
        }
        Method::Blocked(why) => put(10, 60, &[&text(why)?]),
        Method::Unblocked => put(10, 61, &[]),
        Method::ConnectionOpen => put(10, 41, &[]),
        Method::ChannelOpen => put(20, 11, &[]),
        Method::Flow { active } => put(20, 20, &[&[u8::from(*active)]]),
        Method::Confirming => put(85, 11, &[]),
        Method::Ack { tag, multiple } => put(60, 80, &[&tag.to_be_bytes(), &[u8::from(*multiple)]]),
        Method::Nack { tag, multiple } => {
            put(60, 120, &[&tag.to_be_bytes(), &[u8::from(*multiple)]])
        }
        _ => return None,
    }
    Some(out)
}

fn refused(refusal: &Refusal) -> Option<[Vec<u8>; 2]> {
    Some([refusal.code.to_be_bytes().to_vec(), text(&refusal.text)?])
}

fn text(text: &str) -> Option<Vec<u8>> {
    let length = u8::try_from(text.len()).ok()?;
    (!text.contains('\u{FFFD}')).then(|| [&[length], text.as_bytes()].concat())
}

fn header(payload: &[u8]) {
    if let Ok((length, id)) = read_content_header(payload) {
        assert_eq!(Some(length.to_be_bytes().as_slice()), payload.get(4..12));
        assert!(id.is_none_or(|id| id.len() <= 3 * 255));
    }
}
