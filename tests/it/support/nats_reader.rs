//! Reads a stream of JetStream as it grows, across restarts of the server.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use async_nats::jetstream::{self, Context};
use tokio::time::{sleep, timeout};

use super::nats::{self, Nats, STREAM, Stored};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// What is read at a time.
const AT_ONCE: usize = 5_000;
/// A look that takes longer has asked a server that is gone.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Default)]
struct State {
    messages: Vec<Stored>,
    /// What was read under an older one counts no more.
    generation: u64,
    ended: bool,
}

/// The reader; it ends when dropped.
pub(crate) struct Reader {
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

impl Reader {
    /// Reads the stream [`STREAM`] of this server.
    pub(crate) fn start(server: &Nats) -> Reader {
        let state = Arc::new(Mutex::new(State::default()));
        let (url, options) = (server.url(), server.options());
        let thread = thread::spawn({
            let state = state.clone();
            move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().expect("a runtime");
                runtime.block_on(async {
                    let client = options.connect(url).await.expect("a connection");
                    follow(&jetstream::new(client), &state).await;
                });
            }
        });
        Reader {
            state,
            thread: Some(thread),
        }
    }

    /// What has come, in order, without so many of the first ones.
    pub(crate) fn messages_from(&self, first: usize) -> Vec<Stored> {
        lock(&self.state).messages[first..].to_vec()
    }

    /// Forgets all that it has seen, and reads the stream from its first message.
    pub(crate) fn rewind(&self) {
        let mut state = lock(&self.state);
        state.messages.clear();
        state.generation += 1;
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        lock(&self.state).ended = true;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn follow(context: &Context, state: &Mutex<State>) {
    loop {
        let (generation, next) = {
            let state = lock(state);
            if state.ended {
                return;
            }
            let last = state.messages.last();
            (state.generation, last.map_or(1, |last| last.sequence + 1))
        };
        // Reading on, other than looking, takes as long as it takes.
        let stream = timeout(LOOK, context.get_stream(STREAM)).await;
        let found = match stream {
            Ok(Ok(stream)) => timeout(10 * LOOK, nats::try_to_read(&stream, next, AT_ONCE)).await,
            _ => Ok(None),
        };
        if let Ok(Some(found)) = found {
            let mut state = lock(state);
            if state.generation == generation {
                state.messages.extend(found);
            }
        }
        sleep(PAUSE).await;
    }
}
