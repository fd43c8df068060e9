//! `stdout`, on a pipe that takes a few bytes at a time.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use aftercommit::outbox::Field;
use aftercommit::sink::Sink;
use aftercommit::sink::stdout::Stdout;
use tokio::io::AsyncWrite;

use super::{Fields, Subject};

conforms!(stdout, super::Lines::default());

#[derive(Default, Clone)]
struct Lines(Arc<Mutex<Pipe>>);

#[derive(Default)]
struct Pipe {
    taken: Vec<u8>,
    calls: usize,
    closed: bool,
}

impl Subject for Lines {
    fn sink(&self) -> Box<dyn Sink> {
        Box::new(Stdout::new(self.clone()))
    }

    fn received(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().taken.clone()).expect("UTF-8");
        assert!(
            text.is_empty() || text.ends_with('\n'),
            "a torn line at the end"
        );
        let id = |line: &str| {
            let line: serde_json::Value =
                serde_json::from_str(line).expect("one JSON object a line");
            line["id"].as_str().expect("an id").to_owned()
        };
        text.lines().map(id).collect()
    }

    fn set_away(&mut self, away: bool) {
        self.0.lock().unwrap().closed = away;
    }

    fn rejected(&self) -> Fields {
        &[(Field::Payload, "{no json")]
    }

    fn sees_that_it_is_away(&self) -> bool {
        false
    }

    fn retried(&self) -> Option<Fields> {
        None
    }
}

impl AsyncWrite for Lines {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let mut pipe = self.0.lock().unwrap();
        pipe.calls += 1;
        if pipe.closed {
            return Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
        }
        if pipe.calls.is_multiple_of(3) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let taken = bytes.len().min(1 + 37 * pipe.calls);
        pipe.taken.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
