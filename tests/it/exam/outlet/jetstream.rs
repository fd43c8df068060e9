//! JetStream: a stream on disk.

use std::path::Path;

use async_nats::jetstream::stream::{self, DiscardPolicy};

use super::{Found, Place};
use crate::support::exam::ledger::Delivery;
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::nats::{Nats, STREAM};
use crate::support::nats_reader::Reader;

/// Who the daemon logs in as.
const USER: &str = "exam";

/// Messages that a stream has room for when it begins to fill up: more than come until its limit counts. A limit below what it
/// has by then would let the server make room by dropping the oldest. Not bytes: servers before 2.10.5 drop the oldest when
/// they meet `max_bytes`, also with `discard = new`.
const LEFT: i64 = 50_000;
/// What it is filled with, by the harness.
const FILLER: &str = "tasks.filler";

/// A server of its own, with its stream.
pub(super) struct OnJetStream {
    server: Nats,
    reader: Reader,
    read: usize,
}

impl OnJetStream {
    pub(super) fn start() -> OnJetStream {
        let server = Nats::start_with(&settings(Some(CANARY_SECRET)));
        server.make_stream(stream());
        let reader = Reader::start(&server);
        OnJetStream {
            server,
            reader,
            read: 0,
        }
    }
}

/// What is beyond its limits is refused.
fn stream() -> stream::Config {
    stream::Config {
        discard: DiscardPolicy::New,
        ..stream::Config::default()
    }
}

/// The harness may log in, and the daemon with this password.
fn settings(password: Option<&str>) -> String {
    let daemon = password.map(|it| format!(", {{ user: \"{USER}\", password: \"{it}\" }}"));
    let daemon = daemon.unwrap_or_default();
    format!("authorization {{ users: [ {}{daemon} ] }}\n", Nats::admin())
}

impl Place for OnJetStream {
    fn port(&self, _: &Exam) -> u16 {
        self.server.port()
    }

    fn sink(&self, _: &Exam, port: u16) -> String {
        format!(
            "[sink.nats.workers]\nurl = \"nats://{USER}:{CANARY_SECRET}@127.0.0.1:{port}\"\n\
             stream = \"{STREAM}\"\nsubject = \"tasks.{{task}}\"\n"
        )
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        let messages = self.reader.messages_from(self.read);
        self.read += messages.len();
        for it in messages.iter().filter(|it| it.subject != FILLER) {
            let header = |name| it.header(name).expect("a header of ours");
            found.add(
                &it.id(),
                header("aftercommit-task"),
                it.payload.len(),
                || Delivery::of_event(&it.id(), header("aftercommit-lsn"), &it.payload),
            );
        }
    }

    fn rewind(&mut self) {
        self.reader.rewind();
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.server.stop();
    }

    fn cont(&mut self, _: &Exam) {
        self.server.cont();
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.server.kill9();
    }

    fn restart(&mut self, _: &mut Exam) {
        self.server.restart();
    }

    fn fill(&mut self, _: &Exam) {
        let most = self.server.count() + LEFT;
        self.server
            .change_stream(|config| config.max_messages = most);
        self.server.fill(FILLER);
    }

    fn make_room(&mut self, _: &Exam) {
        self.server.change_stream(|config| config.max_messages = -1);
        self.server.purge(FILLER);
    }

    fn vanish(&mut self, _: &Exam) {
        assert_eq!(self.server.count(), 0, "what is in it would be lost");
        self.server.delete_stream();
    }

    fn appear(&mut self, _: &Exam) {
        self.server.make_stream(stream());
    }

    fn admit(&mut self, _: &Exam, password: Option<&str>) {
        self.server.reload(&settings(password));
    }

    fn secret(&self, _: &Exam, password: &str) -> String {
        format!("nats://{USER}:{password}@127.0.0.1:{}", self.server.port())
    }

    fn sink_from(&self, file: &Path) -> String {
        format!(
            "[sink.nats.workers]\nurl_file = \"{}\"\nstream = \"{STREAM}\"\nsubject = \"tasks.{{task}}\"\n",
            file.display()
        )
    }
}
