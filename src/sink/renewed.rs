//! A sink whose secrets stand in files of their own, and are replaced there while the daemon runs.
//!
//! When its place is away, which is also how a refused login shows, the files are read again: where one has changed, a new
//! client takes the place of the old one before the next attempt. Nothing is tried twice here.

use std::time::Duration;

use tracing::info;

use super::marks::Terms;
use super::serving::{Server, Serves, Service};
use super::{Closing, Delivery, Probe, Sink};
use crate::outbox::Task;

/// A new client, where a file has changed since the last one was made.
pub type Renew = Box<dyn FnMut() -> Option<Box<dyn Sink>> + Send>;

/// The sink, and how it is made anew.
pub struct Renewed {
    name: String,
    sink: Box<dyn Sink>,
    renew: Renew,
}

impl Renewed {
    /// `sink`, until `renew` has another one.
    pub fn new(name: &str, sink: Box<dyn Sink>, renew: Renew) -> Renewed {
        Renewed {
            name: name.to_owned(),
            sink,
            renew,
        }
    }

    fn is_away(&mut self) {
        if let Some(sink) = (self.renew)() {
            info!(sink = %self.name, "the secrets of the sink have changed; the new ones are used from now on");
            self.sink = sink;
        }
    }
}

impl Sink for Renewed {
    fn deliver<'a>(&'a mut self, batch: &'a [Task]) -> Delivery<'a> {
        Box::pin(async move {
            let answer = self.sink.deliver(batch).await;
            if answer.is_err() {
                self.is_away();
            }
            answer
        })
    }

    fn deliver_once<'a>(&'a mut self, batch: &'a [Task], terms: Terms) -> Delivery<'a> {
        Box::pin(async move {
            let answer = self.sink.deliver_once(batch, terms).await;
            if answer.is_err() {
                self.is_away();
            }
            answer
        })
    }

    fn serves(&mut self) -> Option<&mut dyn Serves> {
        match self.sink.serves() {
            Some(_) => Some(self),
            None => None,
        }
    }

    fn probe(&mut self) -> Probe<'_> {
        self.sink.probe()
    }

    fn most(&self) -> usize {
        self.sink.most()
    }

    fn close(&mut self) -> Closing<'_> {
        self.sink.close()
    }

    fn keeps(&self) -> Duration {
        self.sink.keeps()
    }
}

impl Serves for Renewed {
    fn side_by_side(&mut self) -> usize {
        self.sink.serves().map_or(1, Serves::side_by_side)
    }

    fn serve(&mut self, server: Server) -> Service<'_> {
        Box::pin(async move {
            let end = match self.sink.serves() {
                Some(sink) => sink.serve(server).await,
                None => Ok(()),
            };
            if end.is_err() {
                self.is_away();
            }
            end
        })
    }
}
