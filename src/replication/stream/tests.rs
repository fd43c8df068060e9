//! Frames that come whole, in pieces, damaged, or not at all.

use proptest::prelude::*;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};

use super::*;
use crate::pg::Lsn;
use crate::replication::{Policy, Stop};

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag][..], &length, body].concat()
}

/// A stream of frames of many sizes, with what may stand between them; and the frames in it.
fn frames() -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut bytes = Vec::new();
    let mut payloads = Vec::new();
    for size in [0, 1, 2, 17, 300, 5, 1, 1200, 0, 64] {
        let payload: Vec<u8> = (0..size).map(|i| (i * 7 + size) as u8).collect();
        bytes.extend(message(b'd', &payload));
        payloads.push(payload);
        if size == 17 {
            bytes.extend(message(b'S', b"TimeZone\0UTC\0"));
            bytes.extend(message(b'N', b"SNOTICE\0C00000\0Mhello\0\0"));
        }
    }
    (bytes, payloads)
}

fn pipe(buffered: &[u8]) -> (DuplexStream, Stream<DuplexStream>) {
    let (server, client) = duplex(1 << 20);
    (server, Stream::new(client, BytesMut::from(buffered)))
}

fn payloads(chunk: &Chunk) -> impl Iterator<Item = Vec<u8>> {
    chunk
        .frames
        .iter()
        .map(|frame| chunk.bytes[frame.clone()].to_vec())
}

/// Reads what is there by now. A read that is not ready is dropped, as the loop does it.
async fn read_ready(stream: &mut Stream<DuplexStream>, into: &mut Vec<Vec<u8>>) {
    loop {
        tokio::select! {
            biased;
            chunk = stream.read() => into.extend(payloads(&chunk.expect("whole frames"))),
            () = std::future::ready(()) => return,
        }
    }
}

/// The error that the stream ends with, and the frames before it.
async fn read_to_the_error(stream: &mut Stream<DuplexStream>) -> (Vec<Vec<u8>>, Error) {
    let mut read = Vec::new();
    loop {
        match stream.read().await {
            Ok(chunk) => read.extend(payloads(&chunk)),
            Err(error) => return (read, error),
        }
    }
}

#[tokio::test]
async fn frames_cut_anywhere_are_read_the_same() {
    let (bytes, expected) = frames();
    for cut in 0..=bytes.len() {
        let (mut server, mut stream) = pipe(&[]);
        let mut read = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            server.write_all(piece).await.unwrap();
            read_ready(&mut stream, &mut read).await;
        }
        assert_eq!(read, expected, "cut at {cut}");

        // The first piece came with the answer to START_REPLICATION.
        let (mut server, mut stream) = pipe(&bytes[..cut]);
        let mut read = Vec::new();
        read_ready(&mut stream, &mut read).await;
        server.write_all(&bytes[cut..]).await.unwrap();
        read_ready(&mut stream, &mut read).await;
        assert_eq!(read, expected, "buffered up to {cut}");
    }
}

#[tokio::test]
async fn a_read_that_was_dropped_loses_nothing() {
    let (bytes, expected) = frames();
    let (mut server, mut stream) = pipe(&[]);
    let mut read = Vec::new();
    for byte in bytes {
        server.write_all(&[byte]).await.unwrap();
        read_ready(&mut stream, &mut read).await;
    }
    assert_eq!(read, expected);
}

#[tokio::test]
async fn a_frame_larger_than_the_buffer_is_read() {
    let (server, client) = duplex(100_000);
    let mut stream = Stream::new(client, BytesMut::new());
    let sizes = [3 << 20, 10, BUFFER - 5, BUFFER - 4, BUFFER, 200_000, 1];
    let bytes: Vec<u8> = sizes
        .iter()
        .flat_map(|&size| message(b'd', &vec![size as u8; size]))
        .collect();
    let writer = tokio::spawn(async move {
        let mut server = server;
        server.write_all(&bytes).await.unwrap();
    });
    let (read, error) = read_to_the_error(&mut stream).await;
    writer.await.unwrap();
    let lengths: Vec<usize> = read.iter().map(Vec::len).collect();
    assert_eq!(lengths, sizes);
    assert!(read.iter().all(|p| p.iter().all(|b| *b == p.len() as u8)));
    assert_eq!(error.policy(), Policy::Reconnect, "{error}");
}

#[tokio::test]
async fn a_stream_that_ends_anywhere_gives_its_whole_frames_and_reconnects() {
    let (bytes, expected) = frames();
    for end in 0..=bytes.len() {
        let (mut server, mut stream) = pipe(&[]);
        server.write_all(&bytes[..end]).await.unwrap();
        drop(server);
        let (read, error) = read_to_the_error(&mut stream).await;
        assert_eq!(read[..], expected[..read.len()], "ended at {end}");
        assert_eq!(error.policy(), Policy::Reconnect, "ended at {end}: {error}");
        // And again: an end stays an end.
        assert!(stream.read().await.is_err());
    }
}

#[tokio::test]
async fn every_other_tag_and_every_absurd_length_stops_at_the_header() {
    let mut headers: Vec<Vec<u8>> = (0..=255u8)
        .filter(|tag| !b"dENScC".contains(tag))
        .map(|tag| message(tag, b"")[..5].to_vec())
        .collect();
    for tag in b"dENScC" {
        for length in [0, 3, 0x4001_0001, 0x7FFF_FFFF, 0x8000_0000, u32::MAX] {
            headers.push([&[*tag][..], &length.to_be_bytes()].concat());
        }
    }
    headers.push([&b"E"[..], &0x1000_0001u32.to_be_bytes()].concat());
    for header in headers {
        let (mut server, mut stream) = pipe(&[]);
        server.write_all(&header).await.unwrap();
        let (_, error) = read_to_the_error(&mut stream).await;
        assert_eq!(
            error.policy(),
            Policy::Stop(Stop::Runtime),
            "{header:?}: {error}"
        );
        assert!(stream.buffer.capacity() <= 2 * BUFFER, "{header:?}");
    }
}

#[tokio::test]
async fn what_the_server_says_ends_the_stream_after_the_frames_before_it() {
    let says = |tag, sqlstate: &str, text: &str| {
        message(tag, format!("C{sqlstate}\0M{text}\0\0").as_bytes())
    };
    for (last, policy) in [
        (says(b'E', "57P01", "terminating"), Policy::Reconnect),
        (
            says(
                b'E',
                "58P01",
                "requested WAL segment has already been removed",
            ),
            Policy::Stop(Stop::SlotLost),
        ),
        (
            says(b'E', "42704", "publication \"p\" does not exist"),
            Policy::Stop(Stop::PublicationLost),
        ),
        (says(b'E', "XX000", "damaged"), Policy::Stop(Stop::Runtime)),
        (message(b'E', b""), Policy::Reconnect),
        (message(b'c', b""), Policy::Reconnect),
        // A walsender ends so when the server shuts down in order.
        (message(b'C', b"COPY 0\0"), Policy::Reconnect),
    ] {
        let (bytes, expected) = frames();
        let (mut server, mut stream) = pipe(&[]);
        server
            .write_all(&[bytes, last.clone()].concat())
            .await
            .unwrap();
        let (read, error) = read_to_the_error(&mut stream).await;
        assert_eq!(read, expected, "{last:?}");
        assert_eq!(error.policy(), policy, "{last:?}: {error}");
    }

    let (mut server, mut stream) = pipe(&[]);
    let skipped = says(b'N', "55000", "skipped loading publication \"p\"");
    server.write_all(&skipped).await.unwrap();
    let (_, error) = read_to_the_error(&mut stream).await;
    assert_eq!(
        error.policy(),
        Policy::Stop(Stop::PublicationLost),
        "{error}"
    );
}

/// A peer that takes only a few bytes at a time, and a writer that gives up again and again: what arrives is whole
/// updates. Half of one followed by another would confirm nonsense.
#[tokio::test]
async fn a_write_that_was_cut_goes_on_where_it_was() {
    let (mut server, client) = duplex(7);
    let mut stream = Stream::new(client, BytesMut::new());
    let mut heard = Vec::new();
    for lsn in 1..=20 {
        tokio::select! {
            biased;
            _ = stream.send_status(ConfirmedLsn::vouch(Lsn(lsn)), Timestamp(0), false) => {}
            () = std::future::ready(()) => {}
        }
        let mut some = [0; 5];
        server.read_exact(&mut some).await.unwrap();
        heard.extend(some);
    }
    let close = stream.close(Duration::from_secs(1));
    let (_, rest) = tokio::join!(close, async {
        let mut rest = Vec::new();
        server.read_to_end(&mut rest).await.unwrap();
        rest
    });
    heard.extend(rest);
    let end = heard.split_off(heard.len() - 10);
    assert_eq!(end, b"c\0\0\0\x04X\0\0\0\x04");
    let lsns: Vec<u64> = heard
        .chunks(39)
        .map(|update| {
            assert_eq!(update[..6], *b"d\0\0\0\x26r");
            u64::from_be_bytes(update[14..22].try_into().unwrap())
        })
        .collect();
    assert_eq!(lsns, (1..=20).collect::<Vec<u64>>());
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_given_up() {
    let (_server, client) = duplex(7);
    let mut stream = Stream::new(client, BytesMut::new());
    let sent = stream
        .send_status(ConfirmedLsn::default(), Timestamp(0), false)
        .await;
    assert_eq!(sent.map_err(|error| error.policy()), Err(Policy::Reconnect));
}

proptest! {
    /// Any bytes, in any pieces: frames or an error, and the same whatever the pieces.
    #[test]
    fn any_bytes_are_read_or_refused(
        pieces in proptest::collection::vec(
            prop_oneof![
                proptest::collection::vec(any::<u8>(), 0..20),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(|body| message(b'd', &body)),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(|body| message(b'N', &body)),
                proptest::collection::vec(any::<u8>(), 0..40).prop_map(|body| message(b'E', &body)),
            ],
            0..6,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let whole = pieces.concat();
            let (mut server, mut stream) = pipe(&whole);
            server.shutdown().await.unwrap();
            let (at_once, why) = read_to_the_error(&mut stream).await;

            let (server, mut stream) = pipe(&[]);
            let writer = async move {
                let mut server = server;
                for piece in pieces {
                    let _ = server.write_all(&piece).await;
                    tokio::task::yield_now().await;
                }
            };
            let (read, (in_pieces, same)) = tokio::join!(writer, read_to_the_error(&mut stream));
            let () = read;
            // A fatal frame hides what came in the same read, which is sent again; it never invents any.
            let common = at_once.len().min(in_pieces.len());
            assert_eq!(at_once[..common], in_pieces[..common]);
            assert_eq!(why.policy(), same.policy());
        });
    }
}
