//! SQS: a standard queue of moto's.
//!
//! moto keeps everything in memory, so it is "killed" by resetting and refusing its connections: that it loses its memory
//! cannot be tried, and SQS has no such thing. It is slow: rows go easy on it, and the one that counts rows a second (11)
//! counts fewer. It has always room (15), and lets everyone in with any signature; that the client trusts an authority of
//! ours cannot be configured (25). FIFO queues are left out: moto forgets the ids that a queue is to know again as soon as
//! a message is read; `tests/it/sqs.rs` has the daemon over them.
//!
//! What was read stays in the queue, unseen: moto may lose what is sent while something is deleted.

use serde_json::json;

use super::{Found, Place};
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::moto::{Moto, Queue};
use crate::support::proxy::Proxy;

/// So many requests for messages at a time.
const AT_ONCE: usize = 20;

enum Server {
    Shared,
    Own(Moto),
}

/// A queue, and what was read from it.
pub(super) struct OnSqs {
    server: Server,
    name: String,
    /// It takes the server away.
    proxy: Proxy,
    bodies: Vec<String>,
    read: usize,
    /// Nobody answers.
    hangs: bool,
}

impl OnSqs {
    pub(super) fn start(own: bool) -> OnSqs {
        let server = match own {
            true => Server::Own(Moto::start()),
            false => Server::Shared,
        };
        let moto = moto(&server);
        let name = moto.queue(false, json!({})).name;
        OnSqs {
            proxy: Proxy::start(moto.port()),
            name,
            server,
            bodies: Vec::new(),
            read: 0,
            hangs: false,
        }
    }

    fn queue(&self) -> Queue<'_> {
        moto(&self.server).queue_of(&self.name)
    }

    fn own(&self) -> &Moto {
        match &self.server {
            Server::Shared => panic!("this one is for others, too"),
            Server::Own(moto) => moto,
        }
    }
}

fn moto(server: &Server) -> &Moto {
    match server {
        Server::Shared => Moto::shared(),
        Server::Own(moto) => moto,
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
        if !self.hangs {
            let new = self.queue().look(AT_ONCE);
            self.bodies.extend(new);
        }
        let new = &self.bodies[self.read..];
        new.iter()
            .for_each(|body| found.add_object(body.as_bytes()));
        self.read = self.bodies.len();
    }

    fn rewind(&mut self) {
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.hangs = true;
        self.own().stop();
    }

    fn cont(&mut self, _: &Exam) {
        self.own().cont();
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
        self.hangs = true;
    }

    fn appear(&mut self, _: &Exam) {
        moto(&self.server).make(&self.name);
        self.hangs = false;
    }
}
