//! A webhook's receiver, in this process: it is killed by closing its socket.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::{Found, Place};
use crate::support::exam::{CANARY_SECRET, Exam};
use crate::support::receiver::{Answer, Receiver, Request};

/// Requests at a time.
pub(super) const CONCURRENCY: usize = 64;

/// It takes no larger body.
const LONGEST: usize = 150_000_000;

/// Who gets in.
#[derive(Default)]
enum Door {
    #[default]
    Open,
    /// With this word at the end of the path.
    For(String),
    Shut,
}

#[derive(Default)]
struct State {
    hangs: AtomicBool,
    door: Mutex<Door>,
    /// The bodies of what was taken.
    taken: Mutex<Vec<Vec<u8>>>,
}

impl State {
    fn answer(&self, request: &Request) -> Answer {
        while self.hangs.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(5));
        }
        let path = request.line.split(' ').nth(1).unwrap_or_default();
        let may = match &*lock(&self.door) {
            Door::Open => true,
            Door::For(word) => path.ends_with(&format!("/{word}")),
            Door::Shut => false,
        };
        if !may {
            return Answer::Status(401, Vec::new());
        }
        if request.body.len() > LONGEST {
            return Answer::Status(413, Vec::new());
        }
        lock(&self.taken).push(request.body.clone());
        Answer::Status(204, Vec::new())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A receiver that takes everything.
pub(super) struct Hooks {
    receiver: Receiver,
    state: Arc<State>,
    read: usize,
}

impl Hooks {
    pub(super) fn start() -> Hooks {
        let state = Arc::new(State::default());
        let receiver = Receiver::deciding({
            let state = state.clone();
            move |request| state.answer(request)
        });
        Hooks {
            receiver,
            state,
            read: 0,
        }
    }
}

/// The part of the configuration that is always the same.
fn settings() -> String {
    format!(
        "allow_addresses = [\"127.0.0.0/8\"]\nconcurrency = {CONCURRENCY}\ntimeout = \"10s\"\n\
         extra_headers = [\"Authorization: Bearer {CANARY_SECRET}\"]\n"
    )
}

impl Place for Hooks {
    fn port(&self, _: &Exam) -> u16 {
        self.receiver.port()
    }

    fn sink(&self, _: &Exam, port: u16) -> String {
        let settings = settings();
        format!("[sink.webhook.workers]\nurl = \"http://127.0.0.1:{port}/hooks\"\n{settings}")
    }

    fn read(&mut self, _: &Exam, found: &mut Found) {
        let taken = lock(&self.state.taken)[self.read..].to_vec();
        self.read += taken.len();
        taken.iter().for_each(|body| found.add_object(body));
    }

    fn rewind(&mut self) {
        self.read = 0;
    }

    fn stop(&mut self, _: &Exam) {
        self.state.hangs.store(true, Ordering::Relaxed);
    }

    fn cont(&mut self, _: &Exam) {
        self.state.hangs.store(false, Ordering::Relaxed);
    }

    fn kill9(&mut self, _: &mut Exam) {
        self.receiver.close();
    }

    fn restart(&mut self, _: &mut Exam) {
        self.receiver.open();
    }

    fn admit(&mut self, _: &Exam, password: Option<&str>) {
        *lock(&self.state.door) = match password {
            Some(password) => Door::For(password.to_owned()),
            None => Door::Shut,
        };
    }

    fn secret(&self, _: &Exam, password: &str) -> String {
        format!("http://127.0.0.1:{}/hooks/{password}", self.receiver.port())
    }

    fn sink_from(&self, file: &Path) -> String {
        let settings = settings();
        format!(
            "[sink.webhook.workers]\nurl_file = \"{}\"\n{settings}",
            file.display()
        )
    }
}

impl Drop for Hooks {
    fn drop(&mut self) {
        self.state.hangs.store(false, Ordering::Relaxed);
    }
}
