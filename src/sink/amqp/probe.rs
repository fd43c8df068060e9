//! What a broker shows of itself without being changed: whether it lets us in and takes messages, and whether a queue is
//! there and outlives a restart.

use super::link::{Link, Trouble};
use super::method::{self, Method, Refusal};
use super::outcome::{blocked, outage, shown};
use super::publisher::Publisher;
use crate::sink::{Outage, Sight};

/// What a question is answered with when the thing that it is about is not there.
const NOT_FOUND: u16 = 404;

impl Publisher {
    /// Looks at the broker, and at the queues and exchanges that most messages go to.
    pub(in crate::sink) async fn look(
        &mut self,
        places: impl IntoIterator<Item = Place<'_>>,
    ) -> Vec<Sight> {
        let remedy = "see to it that the broker runs and that the URL is right";
        let mut link = match self.connect().await {
            Ok(link) => link,
            Err(Outage(cause)) => {
                return vec![Sight::Fault(cause.to_string(), remedy.to_owned())];
            }
        };
        if let Some(why) = &link.blocked {
            let Outage(cause) = blocked(&self.address, why);
            let remedy = "free memory or disk, or let workers catch up".to_owned();
            self.let_rest(link);
            return vec![Sight::Fault(cause.to_string(), remedy)];
        }
        let mut sights = vec![Sight::Good(format!("{} takes messages", link.server))];
        for place in places {
            let seen = match place {
                Place::Queue(name) => queue(&mut link, name).await,
                Place::Exchange(name) => exchange(&mut link, name).await,
            };
            match seen {
                Ok(sight) => sights.extend(sight),
                Err(trouble) => {
                    let Outage(cause) = outage(trouble, &self.address);
                    sights.push(Sight::Fault(cause.to_string(), remedy.to_owned()));
                    return sights;
                }
            }
        }
        self.let_rest(link);
        sights
    }
}

/// What there is to be looked at.
pub(in crate::sink) enum Place<'a> {
    /// A queue, by way of the default exchange.
    Queue(&'a str),
    /// A named exchange.
    Exchange(&'a str),
}

async fn queue(link: &mut Link, name: &str) -> Result<Option<Sight>, Trouble> {
    let shown = shown(name);
    method::find_queue(&mut link.output, link.channel, name);
    if let Some(refusal) = refused(link).await? {
        return Ok(Some(match refusal.code {
            NOT_FOUND => Sight::Risk(
                format!("there is no queue {shown}"),
                "start a worker that declares it, or name another queue".to_owned(),
            ),
            code => Sight::Risk(
                format!("the queue {shown} does not show itself: {code}"),
                "see whether it is another connection's own (exclusive)".to_owned(),
            ),
        }));
    }
    method::ask_durable(&mut link.output, link.channel, name);
    let refusal = refused(link).await?;
    let is_fleeting = refusal.is_some_and(|refusal| refusal.text.contains("arg 'durable' for"));
    Ok(is_fleeting.then(|| {
        Sight::Risk(
            format!("the queue {shown} is not durable: it is gone with all messages when RabbitMQ starts again"),
            "delete it, and let workers declare it as durable (Celery's default)".to_owned(),
        )
    }))
}

async fn exchange(link: &mut Link, name: &str) -> Result<Option<Sight>, Trouble> {
    method::find_exchange(&mut link.output, link.channel, name);
    let refusal = refused(link).await?;
    Ok(refusal.map(|refusal| {
        let shown = shown(name);
        let words = match refusal.code {
            NOT_FOUND => format!("there is no exchange {shown}"),
            code => format!("the exchange {shown} does not show itself: {code}"),
        };
        Sight::Risk(words, "declare it, or name another".to_owned())
    }))
}

/// What a question is refused with; the channel, which that closes, is opened again.
async fn refused(link: &mut Link) -> Result<Option<Refusal>, Trouble> {
    match link.said().await? {
        Method::ChannelClose(refusal) => {
            link.open_channel().await?;
            Ok(Some(refusal))
        }
        _ => Ok(None),
    }
}
