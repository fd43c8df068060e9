//! SQS: a queue of moto's, standard or FIFO.
//!
//! moto keeps everything in memory, so it is "killed" by resetting and refusing its connections: that it loses its memory
//! cannot be tried, and SQS has no such thing. It is slow: rows go easy on it. It has always room (15), and lets everyone in
//! with any signature; that the client trusts an authority of ours cannot be configured (25). Its FIFO queues get slower with
//! each message, until no request is answered in time: rows with many messages (11, 12, 14), and the full profile, leave them
//! out.
//!
//! SQS promises no order in standard queues; moto keeps the one in which it was given messages, and that is what is judged.

use serde_json::json;

use super::{Found, Place};
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::moto::{Moto, Queue};
use crate::support::proxy::Proxy;

/// A server of its own, with a queue.
pub(super) struct OnSqs {
    server: Moto,
    name: String,
    /// It takes the server away.
    proxy: Proxy,
    read: usize,
    /// Nobody answers.
    hangs: bool,
}

impl OnSqs {
    pub(super) fn start(fifo: bool) -> OnSqs {
        let server = Moto::start_open();
        OnSqs {
            proxy: Proxy::start(server.port()),
            name: server.queue(fifo, json!({})).name,
            server,
            read: 0,
            hangs: false,
        }
    }

    fn queue(&self) -> Queue<'_> {
        self.server.queue_of(&self.name)
    }
}

impl Place for OnSqs {
    fn port(&self, _: &Exam) -> u16 {
        self.proxy.port()
    }

    fn sink(&self, _: &Exam, port: u16) -> String {
        format!(
            "[sink.sqs.workers]\nqueue = \"{}\"\nregion = \"us-east-1\"\naccess_key_id = \"exam\"\n\
             secret_access_key = \"{CANARY_SECRET}\"\nendpoint_url = \"http://127.0.0.1:{port}\"\n",
            self.name
        )
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        if self.hangs {
            return;
        }
        let new = self.server.bodies(&self.name, self.read);
        let new = new.expect("what the queue has");
        self.read += new.len();
        new.iter()
            .for_each(|body| found.add_object(body.as_bytes()));
    }

    fn rewind(&mut self) {
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.hangs = true;
        self.server.stop();
    }

    fn cont(&mut self, _: &Exam) {
        self.server.cont();
        self.hangs = false;
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.proxy.set_away(true);
    }

    fn restart(&mut self, _: &mut Exam) {
        self.proxy.set_away(false);
    }

    fn vanish(&mut self, _: &Exam) {
        self.queue().delete();
    }

    fn appear(&mut self, _: &Exam) {
        self.queue().make();
    }
}
