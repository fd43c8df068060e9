//! On a clock that jumps, over a pipe.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};

use super::*;

const PATIENCE: Duration = Duration::from_secs(60);

fn frame(tag: u8, body: usize) -> Vec<u8> {
    let length = (body as u32 + 4).to_be_bytes();
    [&[tag][..], &length, &vec![0; body]].concat()
}

fn start(pipe: usize) -> (DuplexStream, Heard<DuplexStream>) {
    let (server, client) = duplex(pipe);
    (server, Heard::new(client, Some(PATIENCE), b""))
}

/// How long a read takes, and whether it ends in silence.
async fn read(heard: &mut Heard<DuplexStream>) -> (Duration, io::Result<usize>) {
    let since = Instant::now();
    let read = heard.read(&mut [0; 64]).await;
    (since.elapsed(), read)
}

fn is_silence<T>(read: &io::Result<T>) -> bool {
    read.as_ref()
        .is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
}

#[tokio::test(start_paused = true)]
async fn a_server_that_owes_an_answer_is_not_waited_for_for_ever() {
    for tag in [QUERY, SYNC] {
        let (_server, mut heard) = start(1 << 10);
        heard.write_all(&frame(tag, 20)).await.expect("taken");
        let (took, read) = read(&mut heard).await;
        assert!(is_silence(&read), "{read:?}");
        assert!(took >= PATIENCE && took < PATIENCE * 2, "{took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_owes_nothing_may_be_silent() {
    let (mut server, mut heard) = start(1 << 10);
    // Parse and Bind: nothing is answered before the Sync.
    for frame in [frame(b'P', 20), frame(b'B', 3), frame(QUERY, 9)] {
        heard.write_all(&frame).await.expect("taken");
    }
    let answer = [frame(b'T', 30), frame(READY_FOR_QUERY, 1)].concat();
    server.write_all(&answer).await.expect("sent");
    let mut got = vec![0; answer.len()];
    heard.read_exact(&mut got).await.expect("the answer");
    let read = timeout(PATIENCE * 100, heard.read(&mut [0; 64])).await;
    assert!(read.is_err(), "{read:?}");
    // Then it owes one again.
    heard.write_all(&frame(SYNC, 0)).await.expect("taken");
    assert!(is_silence(&read_to_end(heard).await));
}

async fn read_to_end(mut heard: Heard<DuplexStream>) -> io::Result<usize> {
    heard.read_to_end(&mut Vec::new()).await
}

#[tokio::test(start_paused = true)]
async fn an_answer_may_take_long_as_long_as_it_comes() {
    let (mut server, mut heard) = start(1 << 10);
    heard.write_all(&frame(QUERY, 9)).await.expect("taken");
    heard.write_all(&frame(QUERY, 9)).await.expect("taken");
    let answers = [
        frame(b'D', 7),
        frame(READY_FOR_QUERY, 1),
        frame(READY_FOR_QUERY, 1),
    ]
    .concat();
    let bytes = answers.len();
    let sender = tokio::spawn(async move {
        for byte in answers {
            sleep(PATIENCE - Duration::from_secs(1)).await;
            server.write_all(&[byte]).await.expect("sent");
        }
        server
    });
    let mut got = vec![0; bytes];
    heard.read_exact(&mut got).await.expect("all of it");
    let _server = sender.await.expect("it is there");
    assert_eq!(heard.owed, 0);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_takes_nothing_is_not_waited_for_for_ever() {
    let (_server, mut heard) = start(16);
    // Not even the end of the query is with the server.
    let query = frame(QUERY, 100);
    let since = Instant::now();
    let (mut reader, mut writer) = tokio::io::split(&mut heard);
    let (mut bytes, query) = ([0; 8], &query);
    let end = tokio::select! {
        read = reader.read(&mut bytes) => read,
        written = writer.write_all(query) => written.map(|()| 0),
    };
    assert!(is_silence(&end), "{end:?}");
    assert!(since.elapsed() >= PATIENCE);
}

#[tokio::test(start_paused = true)]
async fn a_copy_owes_one_answer_though_it_has_two_syncs() {
    let (mut server, mut heard) = start(1 << 10);
    heard.write_all(&frame(SYNC, 0)).await.expect("taken");
    server.write_all(&frame(COPY_IN, 3)).await.expect("sent");
    read(&mut heard).await.1.expect("it may begin");
    for frame in [frame(b'd', 9), frame(b'c', 0), frame(SYNC, 0)] {
        heard.write_all(&frame).await.expect("taken");
    }
    let (took, ended) = read(&mut heard).await;
    assert!(is_silence(&ended) && took >= PATIENCE, "{ended:?}");
    let end = [frame(b'C', 7), frame(READY_FOR_QUERY, 1)].concat();
    server.write_all(&end).await.expect("sent");
    read(&mut heard).await.1.expect("the end");
    assert_eq!(heard.owed, 0);
}

/// Who asks takes nothing for a while: that is not the server's silence.
#[tokio::test(start_paused = true)]
async fn only_the_time_in_which_we_listen_counts() {
    let (mut server, mut heard) = start(1 << 10);
    heard.write_all(&frame(QUERY, 9)).await.expect("taken");
    server.write_all(&frame(b'D', 9)).await.expect("sent");
    let (_, first) = read(&mut heard).await;
    assert_eq!(first.expect("a row"), 14);
    sleep(PATIENCE * 3).await;
    let (took, read) = read(&mut heard).await;
    assert!(is_silence(&read), "{read:?}");
    assert!(took >= PATIENCE, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn without_a_limit_it_waits() {
    let (_server, client) = duplex(1 << 10);
    let mut heard = Heard::new(client, None, b"");
    heard.write_all(&frame(QUERY, 9)).await.expect("taken");
    let read = timeout(PATIENCE * 100, heard.read(&mut [0; 64])).await;
    assert!(read.is_err(), "{read:?}");
}

#[test]
fn frames_may_be_cut_anywhere() {
    let stream = [
        frame(b'T', 30),
        frame(b'Z', 1),
        frame(b'S', 0),
        frame(b'D', 5),
    ]
    .concat();
    for cut in 0..stream.len() {
        let (mut frames, mut tags) = (Frames::default(), Vec::new());
        let (first, second) = stream.split_at(cut);
        for part in [first, second] {
            frames.pass(part, |tag| tags.push(tag));
        }
        assert_eq!(tags, b"TZSD", "cut at {cut}");
    }
    // A length that cannot be is nobody's end.
    let mut frames = Frames::default();
    frames.pass(b"Z\0\0\0\0Z\0\0\0\x05I", |_| {});
}
