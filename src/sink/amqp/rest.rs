//! A connection between two batches: it is looked after, so that heartbeats go out, and what the broker says is heard.

use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::link::{Event, Link};
use super::method::Method;
use super::outcome::outage;
use crate::sink::Outage;

/// A connection that rests; closed when dropped.
pub(super) struct Resting {
    wake: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<Link, Option<Outage>>>,
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

    /// Takes it back. It is closed when this is dropped midway.
    ///
    /// # Errors
    /// It is of no more use: it has broken, or what was said on it is over.
    pub(super) async fn wake(mut self) -> Result<Link, Option<Outage>> {
        if let Some(wake) = self.wake.take() {
            // Gone when the connection has broken.
            let _ = wake.send(());
        }
        (&mut self.task).await.unwrap_or(Err(None))
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn look_after(
    mut link: Link,
    mut woken: oneshot::Receiver<()>,
) -> Result<Link, Option<Outage>> {
    loop {
        tokio::select! {
            biased;
            event = link.event() => match event {
                // Once the broker takes messages again, it answers for some that were given up: nobody waits for that.
                Ok(Event::Said(Method::ChannelClose(_) | Method::Unblocked)) => return Err(None),
                Err(trouble) => return Err(Some(outage(trouble, &link.address))),
                Ok(_) => {}
            },
            _ = &mut woken => return Ok(link),
        }
    }
}
