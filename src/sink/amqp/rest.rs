//! A connection between two batches: it is looked after, so that heartbeats go out, and what the broker says is heard.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::link::{Event, Link};
use super::method::Method;

/// A connection that rests; closed when dropped.
pub(super) struct Resting {
    wake: Option<oneshot::Sender<()>>,
    task: JoinHandle<Option<Link>>,
}

impl Resting {
    /// Lets it rest.
    pub(super) fn new(link: Link) -> Resting {
        let (wake, woken) = oneshot::channel();
        Resting {
            wake: Some(wake),
            task: tokio::spawn(look_after(link, woken)),
        }
    }

    /// Takes it back; `None` when it has broken meanwhile. It is closed when this is dropped midway.
    pub(super) async fn wake(mut self) -> Option<Link> {
        if let Some(wake) = self.wake.take() {
            // Gone when the connection has broken.
            let _ = wake.send(());
        }
        (&mut self.task).await.ok().flatten()
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_after(mut link: Link, mut woken: oneshot::Receiver<()>) -> Option<Link> {
    loop {
        tokio::select! {
            biased;
            event = link.event() => match event {
                // Once the broker takes messages again, it answers for some that were given up: nobody waits for that.
                Err(_) | Ok(Event::Said(Method::ChannelClose(_) | Method::Unblocked)) => return None,
                Ok(_) => {}
            },
            _ = &mut woken => return Some(link),
        }
    }
}
