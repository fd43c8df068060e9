//! A webhook's receiver, in this process: it is killed by closing its socket.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use super::Place;
use crate::support::exam::ledger::Delivery;
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::receiver::{Answer, Receiver};

/// Requests at a time.
pub(super) const CONCURRENCY: usize = 64;

/// A receiver that takes everything.
pub(super) struct Hooks {
    receiver: Receiver,
    hangs: Arc<AtomicBool>,
    read: usize,
}

impl Hooks {
    pub(super) fn start() -> Hooks {
        let hangs = Arc::new(AtomicBool::new(false));
        let receiver = Receiver::deciding({
            let hangs = hangs.clone();
            move |_| {
                while hangs.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(5));
                }
                Answer::Status(204, Vec::new())
            }
        });
        Hooks {
            receiver,
            hangs,
            read: 0,
        }
    }
}

impl Place for Hooks {
    fn port(&self, _: &Exam) -> u16 {
        self.receiver.port()
    }

    fn sink(&self, _: &Exam, port: u16) -> String {
        format!(
            "[sink.webhook.workers]\nurl = \"http://127.0.0.1:{port}/hooks\"\nallow_addresses = [\"127.0.0.0/8\"]\n\
             extra_headers = [\"Authorization: Bearer {CANARY_SECRET}\"]\nconcurrency = {CONCURRENCY}\ntimeout = \"10s\"\n"
        )
    }

    fn read(&mut self, _: &Exam, deliveries: &mut Vec<Delivery>) {
        let requests = self.receiver.requests_from(self.read);
        self.read += requests.len();
        deliveries.extend(requests.iter().map(|it| Delivery::of_object(&it.body)));
    }

    fn rewind(&mut self) {
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.hangs.store(true, Ordering::Relaxed);
    }

    fn cont(&mut self, _: &Exam) {
        self.hangs.store(false, Ordering::Relaxed);
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.receiver.close();
    }

    fn restart(&mut self, _: &mut Exam) {
        self.receiver.open();
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.hangs.store(false, Ordering::Relaxed);
    }
}
