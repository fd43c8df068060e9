//! A scripted walsender at the other end of a pipe: what it sends, step by step, and what it must hear.

use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::{Instant, sleep, timeout};

use crate::pg::Lsn;

/// OID of the outbox in the script.
pub(super) const OUTBOX: u32 = 16_391;

/// The grain of tokio's timer.
pub(super) const GRAIN: Duration = Duration::from_millis(1);

/// The server's side of the pipe.
pub(super) struct Walsender {
    socket: DuplexStream,
    heard: BytesMut,
}

/// A standby status update, as the server has heard it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Status {
    /// What is confirmed.
    pub flushed: Lsn,
    /// Whether a keepalive is asked for.
    pub asks: bool,
    /// When it came.
    pub at: Instant,
}

/// What the client has sent.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Heard {
    Status(Status),
    CopyDone,
    Terminate,
    Closed,
}

impl Walsender {
    pub(super) fn new(socket: DuplexStream) -> Walsender {
        Walsender {
            socket,
            heard: BytesMut::new(),
        }
    }

    /// Sends bytes; waits while the client does not read.
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.socket
            .write_all(bytes)
            .await
            .expect("the client is there");
    }

    /// Sends bytes until the client takes no more; returns what it did not take.
    pub(super) async fn flood<'a>(&mut self, mut bytes: &'a [u8]) -> &'a [u8] {
        while let Ok(taken) = timeout(Duration::from_millis(1), self.socket.write(bytes)).await {
            let taken = taken.expect("the client is there");
            assert!(taken > 0, "it takes everything");
            bytes = &bytes[taken..];
        }
        bytes
    }

    /// Sends no more, but goes on reading.
    pub(super) async fn half_close(&mut self) {
        self.socket.shutdown().await.expect("shutdown");
    }

    /// Sends byte by byte, each once the client has read the one before.
    pub(super) async fn trickle(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.send(&[*byte]).await;
            sleep(GRAIN).await;
        }
    }

    /// The next message from the client; `None` if there is none for so long, give or take the grain of the timer.
    pub(super) async fn hear(&mut self, within: Duration) -> Option<Heard> {
        timeout(within + GRAIN, self.next()).await.ok()
    }

    /// The next status update; nothing else may come before it.
    pub(super) async fn status(&mut self, within: Duration) -> Status {
        match self.hear(within).await {
            Some(Heard::Status(status)) => status,
            other => panic!("{other:?} instead of a status update"),
        }
    }

    /// Waits for the update that confirms `lsn`; says how many others came before it. None may confirm more.
    pub(super) async fn confirmation(&mut self, lsn: u64) -> usize {
        for others in 0..1000 {
            let status = self.status(Duration::from_secs(60)).await;
            assert!(status.flushed <= Lsn(lsn), "{} is too much", status.flushed);
            if status.flushed == Lsn(lsn) {
                return others;
            }
        }
        panic!("{} was not confirmed", Lsn(lsn));
    }

    /// The session's end in order: status updates, then CopyDone and Terminate. Returns the last update.
    pub(super) async fn farewell(&mut self) -> Status {
        let mut last = None;
        loop {
            match self.hear(Duration::from_secs(60)).await {
                Some(Heard::Status(status)) => last = Some(status),
                Some(Heard::CopyDone) => break,
                other => panic!("{other:?} instead of CopyDone"),
            }
        }
        assert_eq!(
            self.hear(Duration::from_secs(60)).await,
            Some(Heard::Terminate)
        );
        last.expect("a last status update")
    }

    async fn next(&mut self) -> Heard {
        while !self.is_whole() {
            let read = self.socket.read_buf(&mut self.heard).await.expect("read");
            if read == 0 {
                assert!(self.heard.is_empty(), "closed inside of a message");
                return Heard::Closed;
            }
        }
        let tag = self.heard.get_u8();
        let length = self.heard.get_u32() as usize;
        let mut body = self.heard.split_to(length - 4);
        match tag {
            b'c' => Heard::CopyDone,
            b'X' => Heard::Terminate,
            b'd' => {
                assert_eq!((body.len(), body.get_u8()), (34, b'r'));
                let (written, flushed, applied) = (body.get_u64(), body.get_u64(), body.get_u64());
                assert_eq!((written, applied), (flushed, flushed));
                let _ = body.get_i64();
                Heard::Status(Status {
                    flushed: Lsn(flushed),
                    asks: body.get_u8() == 1,
                    at: Instant::now(),
                })
            }
            other => panic!("the client sent {:?}", other as char),
        }
    }

    fn is_whole(&self) -> bool {
        let length = self
            .heard
            .get(1..5)
            .map(|mut length| length.get_u32() as usize);
        length.is_some_and(|length| self.heard.len() > length)
    }
}

/// One message of the protocol.
pub(super) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[tag][..], &length, body].concat()
}

/// XLogData around a message of pgoutput.
pub(super) fn xlog(data: &[u8]) -> Vec<u8> {
    message(b'd', &[b"w", &[0; 24][..], data].concat())
}

pub(super) fn keepalive(wal_end: u64, demands: bool) -> Vec<u8> {
    let body = [
        b"k",
        &wal_end.to_be_bytes()[..],
        &[0; 8],
        &[u8::from(demands)],
    ]
    .concat();
    message(b'd', &body)
}

pub(super) fn begin(commit_lsn: u64, xid: u32) -> Vec<u8> {
    xlog(
        &[
            b"B",
            &commit_lsn.to_be_bytes()[..],
            &[0; 8],
            &xid.to_be_bytes(),
        ]
        .concat(),
    )
}

pub(super) fn commit(commit_lsn: u64, end_lsn: u64) -> Vec<u8> {
    let lsns = [commit_lsn.to_be_bytes(), end_lsn.to_be_bytes()].concat();
    xlog(&[b"C\0", &lsns[..], &[0; 8]].concat())
}

/// Describes the outbox: `id` and `task`.
pub(super) fn relation() -> Vec<u8> {
    let mut data = b"R".to_vec();
    data.extend(OUTBOX.to_be_bytes());
    data.extend(b"aftercommit\0outbox\0d\0\x02");
    for column in ["id", "task"] {
        data.extend(format!("\0{column}\0").as_bytes());
        data.extend([0, 0, 0, 25, 0xFF, 0xFF, 0xFF, 0xFF]);
    }
    xlog(&data)
}

/// A row of the outbox.
pub(super) fn insert(id: &str, task: &str) -> Vec<u8> {
    let mut data = b"I".to_vec();
    data.extend(OUTBOX.to_be_bytes());
    data.extend(b"N\0\x02");
    for value in [id, task] {
        data.push(b't');
        data.extend((value.len() as u32).to_be_bytes());
        data.extend(value.as_bytes());
    }
    xlog(&data)
}

/// A whole transaction of one row, which is described before it.
pub(super) fn transaction(commit_lsn: u64) -> Vec<u8> {
    let row = insert(&format!("row-{commit_lsn}"), "shop.send");
    [
        begin(commit_lsn, 700),
        relation(),
        row,
        commit(commit_lsn, commit_lsn + 5),
    ]
    .concat()
}

/// An ErrorResponse or NoticeResponse.
pub(super) fn words(tag: u8, sqlstate: &str, text: &str) -> Vec<u8> {
    message(
        tag,
        format!("SFATAL\0VFATAL\0C{sqlstate}\0M{text}\0\0").as_bytes(),
    )
}
