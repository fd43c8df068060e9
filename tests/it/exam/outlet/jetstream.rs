//! JetStream: a stream on disk.

use super::Place;
use crate::support::exam::ledger::Delivery;
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::nats::{Nats, STREAM};
use crate::support::nats_reader::Reader;

/// Who the daemon logs in as.
const USER: &str = "exam";

/// A server of its own, with its stream.
pub(in crate::exam) struct OnJetStream {
    server: Nats,
    reader: Reader,
    read: usize,
}

impl OnJetStream {
    pub(super) fn start() -> OnJetStream {
        let server = Nats::start_with(&settings(CANARY_SECRET)).with_stream();
        let reader = Reader::start(&server);
        OnJetStream {
            server,
            reader,
            read: 0,
        }
    }
}

/// Two users: the harness, and the daemon with this password.
fn settings(password: &str) -> String {
    let daemon = format!("{{ user: \"{USER}\", password: \"{password}\" }}");
    format!(
        "authorization {{ users: [ {}, {daemon} ] }}\n",
        Nats::admin()
    )
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

    fn read(&mut self, _: &Exam, deliveries: &mut Vec<Delivery>) {
        let messages = self.reader.messages_from(self.read);
        self.read += messages.len();
        let decoded = messages.iter().map(|it| {
            let lsn = it.header("aftercommit-lsn").expect("an LSN");
            Delivery::of_event(&it.id(), lsn, &it.payload)
        });
        deliveries.extend(decoded);
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
}
