//! What a broker shows of itself without being changed: whether it lets us in and takes messages, and whether a queue is
//! there and outlives a restart.

use super::link::{Link, Trouble};
use super::method::{self, Method, Refusal};
use super::outcome::{blocked, outage, shown};
use super::publisher::Publisher;
use crate::sink::{Outage, Sight};

/// The remedy where there is no answer.
const RUNS: &str = "see to it that the broker runs and that the URL is right";

/// What a question is answered with when the thing that it is about is not there.
const NOT_FOUND: u16 = 404;

impl Publisher {
    /// Looks at the broker, and at the queues and exchanges that most messages go to.
    pub(in crate::sink) async fn look(
        &mut self,
        places: impl IntoIterator<Item = Place<'_>>,
    ) -> Vec<Sight> {
        let rested = self.rested().await;
        if let Some(link) = &rested
            && let Some(why) = &link.blocked
        {
            let Outage { cause, .. } = blocked(&link.address, why);
            let remedy = "free memory or disk, or let workers catch up".to_owned();
            rested.into_iter().for_each(|link| self.let_rest(link));
            return vec![Sight::Fault(cause.to_string(), remedy)];
        }
        let nodes = self.nodes.connect_each(rested, self.timeout).await;
        let (mut sights, link) = roll_call(nodes);
        let Some(mut link) = link else {
            return sights;
        };
        for place in places {
            let seen = match place {
                Place::Queue(name) => queue(&mut link, name).await,
                Place::Exchange(name) => exchange(&mut link, name).await,
            };
            match seen {
                Ok(sight) => sights.extend(sight),
                Err(trouble) => {
                    let Outage { cause, .. } = outage(trouble, &link.address);
                    sights.push(Sight::Fault(cause.to_string(), RUNS.to_owned()));
                    return sights;
                }
            }
        }
        self.nodes.begin_at(&link);
        self.let_rest(link);
        sights
    }
}

/// Which nodes take messages and which do not, and a connection to one that does. One that is away is a risk where another one is
/// there.
fn roll_call(nodes: Vec<Result<Link, Outage>>) -> (Vec<Sight>, Option<Link>) {
    let is_one = nodes.len() == 1;
    let mut sights = Vec::new();
    let mut first: Option<Link> = None;
    let mut away = Vec::new();
    for node in nodes {
        let link = match node {
            Ok(link) => link,
            Err(Outage { cause, .. }) => {
                away.push(cause.to_string());
                continue;
            }
        };
        sights.push(Sight::Good(match is_one {
            true => format!("{} takes messages", link.server),
            false => format!("{} at {} takes messages", link.server, link.address),
        }));
        match &first {
            None => first = Some(link),
            Some(other) if other.cluster == link.cluster => {}
            Some(other) => sights.push(strangers(other, &link)),
        }
    }
    let sight = |words| match first {
        Some(_) => Sight::Risk(words, format!("{RUNS}; the others do its work meanwhile")),
        None => Sight::Fault(words, RUNS.to_owned()),
    };
    sights.extend(away.into_iter().map(sight));
    (sights, first)
}

/// They do not know each other's queues.
fn strangers(one: &Link, other: &Link) -> Sight {
    let cluster = |link: &Link| shown(link.cluster.as_deref().unwrap_or_default());
    Sight::Risk(
        format!(
            "{} belongs to the cluster {}, and {} to {}: messages would wait in two brokers",
            one.address,
            cluster(one),
            other.address,
            cluster(other)
        ),
        "name the nodes of one cluster only".to_owned(),
    )
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
