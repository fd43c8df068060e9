//! A batch on its way: at first all at once, and what is left after a refusal with care.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::time::Duration;

use rdkafka::error::RDKafkaErrorCode;

use super::session::{Manner, Session};
use super::verdict::{self, Refusal};
use super::{Config, topic};
use crate::envelope::Unfit;
use crate::envelope::parcel::Parcel;
use crate::outbox::{Field, Task};
use crate::sink::order::Order;
use crate::sink::{Cause, Outage, Outcome};

/// After a purge every message has its report at once; and a cluster that is there answers.
const MOMENT: Duration = Duration::from_secs(2);

/// The sink.
pub(super) struct Kafka {
    pub(super) config: Config,
    quick: Option<Session>,
    careful: Option<Session>,
}

/// What is known of a batch's tasks so far.
type Known = Vec<Option<Outcome>>;

/// The topics of a batch's tasks, where they are there.
type Topics<'t> = Vec<Option<Cow<'t, str>>>;

/// Why a producer is given up.
enum Stop {
    /// Messages were refused.
    Refused,
    /// Nothing was confirmed for as long as the timeout.
    Silence,
}

impl Kafka {
    pub(super) fn new(config: Config) -> Kafka {
        Kafka {
            config,
            quick: None,
            careful: None,
        }
    }

    pub(super) async fn hand_over(&mut self, batch: &[Task]) -> Result<Vec<Outcome>, Outage> {
        let mut known: Known = vec![None; batch.len()];
        // Sessions are this future's own until it is done: when it is dropped, so are the messages in them.
        let (mut quick, mut careful) = (self.quick.take(), self.careful.take());
        let away = hand_over(&self.config, &mut quick, &mut careful, batch, &mut known).await;
        if let Err(outage) = away {
            return Err(outage.amid(known));
        }
        (self.quick, self.careful) = (quick, careful);
        Ok(settled(batch, &known))
    }
}

/// Brings all of a batch to the point where its outcome is known.
async fn hand_over(
    config: &Config,
    quick: &mut Option<Session>,
    careful: &mut Option<Session>,
    batch: &[Task],
    known: &mut Known,
) -> Result<(), Outage> {
    if batch.is_empty() {
        return Ok(());
    }
    let session = open(config, quick, Manner::Quick)?;
    let topics = topics(config, session, batch, known).await?;
    if let Err(stop) = quickly(config, session, batch, &topics, known).await {
        collect(session, known).await;
        if let Stop::Silence = stop {
            silence(config, session, &topics, known).await?;
        }
        *quick = None;
    }
    if known.iter().any(Option::is_none) {
        carefully(config, careful, batch, &topics, known).await?;
    }
    Ok(())
}

fn open<'s>(
    config: &Config,
    place: &'s mut Option<Session>,
    manner: Manner,
) -> Result<&'s mut Session, Outage> {
    match place {
        Some(session) => Ok(session),
        None => Ok(place.insert(Session::open(config, manner)?)),
    }
}

/// Where tasks go; what goes nowhere is known then.
async fn topics<'t>(
    config: &'t Config,
    session: &mut Session,
    batch: &'t [Task],
    known: &mut Known,
) -> Result<Topics<'t>, Outage> {
    let mut absent: HashMap<Cow<'t, str>, Refusal> = HashMap::new();
    let mut topics = Vec::with_capacity(batch.len());
    for (task, known) in batch.iter().zip(known) {
        let found = match topic_of(config, task) {
            Err(unfit) => Err(Outcome::Reject(Cause::new(unfit.into_words()))),
            Ok(topic) => {
                let refusal = match absent.get(&topic) {
                    Some(refusal) => Err(refusal.clone()),
                    None => session.has(&topic, config.timeout).await?,
                };
                if let Err(refusal) = &refusal {
                    absent.insert(topic.clone(), refusal.clone());
                }
                refusal.map(|()| topic).map_err(Outcome::from)
            }
        };
        match found {
            Ok(topic) => topics.push(Some(topic)),
            Err(outcome) => {
                *known = Some(outcome);
                topics.push(None);
            }
        }
    }
    Ok(topics)
}

fn topic_of<'t>(config: &'t Config, task: &'t Task) -> Result<Cow<'t, str>, Unfit> {
    let name = match task.text(Field::Queue) {
        Some(queue) => Cow::Borrowed(queue),
        None => config.topic.name(task, "topic")?,
    };
    let checked = topic::check(&name).map_err(|words| format!("the topic {words}"));
    checked.map(|()| name).map_err(Unfit::new)
}

/// Sends all in order, and waits until all is confirmed. A key whose tasks go to several topics is left where it first goes
/// elsewhere: what is behind a refusal in one topic would be stored in the other.
async fn quickly(
    config: &Config,
    session: &mut Session,
    batch: &[Task],
    topics: &Topics<'_>,
    known: &mut Known,
) -> Result<(), Stop> {
    let mut going: HashMap<&[u8], &str> = HashMap::new();
    let mut closed: HashSet<&[u8]> = HashSet::new();
    for (index, (task, topic)) in batch.iter().zip(topics).enumerate() {
        let key = task.key();
        if key.is_some_and(|key| closed.contains(key)) {
            continue;
        }
        // Without a topic it is known already what becomes of it.
        let Some(topic) = topic.as_deref() else {
            closed.extend(key);
            continue;
        };
        if key.is_some_and(|key| *going.entry(key).or_insert(topic) != topic) {
            closed.extend(key);
            continue;
        }
        let parcel = match Parcel::new(config.format, &config.source, task) {
            Ok(parcel) => parcel,
            Err(unfit) => {
                set(
                    known,
                    index,
                    Outcome::Reject(Cause::new(unfit.into_words())),
                );
                closed.extend(key);
                continue;
            }
        };
        loop {
            match session.send(index, topic, key, &parcel) {
                Ok(()) => break,
                Err(RDKafkaErrorCode::QueueFull) if session.under_way() > 0 => {
                    confirmed(config, session, known).await?;
                }
                Err(RDKafkaErrorCode::Fatal) => return Err(Stop::Refused),
                Err(code) => {
                    set(known, index, verdict::of(code).into());
                    closed.extend(key);
                    break;
                }
            }
        }
    }
    while session.under_way() > 0 {
        confirmed(config, session, known).await?;
    }
    Ok(())
}

/// The next confirmation.
async fn confirmed(config: &Config, session: &mut Session, known: &mut Known) -> Result<(), Stop> {
    match session.report(config.timeout).await {
        Some((index, Ok(()))) => {
            set(known, index, Outcome::Delivered);
            Ok(())
        }
        Some((_, Err(_))) => Err(Stop::Refused),
        None => Err(Stop::Silence),
    }
}

/// Sends what is not known yet, of each key one after the other.
async fn carefully(
    config: &Config,
    place: &mut Option<Session>,
    batch: &[Task],
    topics: &Topics<'_>,
    known: &mut Known,
) -> Result<(), Outage> {
    let session = open(config, place, Manner::Careful)?;
    let mut order = Order::new(batch);
    loop {
        while let Some(index) = order.take() {
            let task = batch
                .get(index)
                .zip(topics.get(index).and_then(Option::as_ref));
            let outcome = match (known.get(index).cloned().flatten(), task) {
                (Some(outcome), _) => Some(outcome),
                (None, Some((task, topic))) => send(config, session, index, task, topic).err(),
                (None, None) => Some(not_confirmed()),
            };
            if let Some(outcome) = outcome {
                set(known, index, outcome.clone());
                order.settle(index, outcome);
            }
        }
        if session.under_way() == 0 {
            return Ok(());
        }
        let Some((index, result)) = session.report(config.timeout).await else {
            break;
        };
        let outcome = match result {
            Ok(()) => Outcome::Delivered,
            Err(code) => verdict::of(code).into(),
        };
        set(known, index, outcome.clone());
        order.settle(index, outcome);
    }
    collect(session, known).await;
    silence(config, session, topics, known).await?;
    *place = None;
    Ok(())
}

fn send(
    config: &Config,
    session: &mut Session,
    index: usize,
    task: &Task,
    topic: &str,
) -> Result<(), Outcome> {
    let parcel = Parcel::new(config.format, &config.source, task)
        .map_err(|unfit| Outcome::Reject(Cause::new(unfit.into_words())))?;
    session
        .send(index, topic, task.key(), &parcel)
        .map_err(|code| verdict::of(code).into())
}

/// Takes everything back, and hears what was confirmed until then.
async fn collect(session: &mut Session, known: &mut Known) {
    session.purge();
    while session.under_way() > 0 {
        match session.report(MOMENT).await {
            Some((index, Ok(()))) => set(known, index, Outcome::Delivered),
            Some((_, Err(_))) => {}
            None => return,
        }
    }
}

/// Nothing was confirmed for a while: is Kafka away, or are some partitions? Then their tasks are to be tried again.
async fn silence(
    config: &Config,
    session: &Session,
    topics: &Topics<'_>,
    known: &mut Known,
) -> Result<(), Outage> {
    let mut left = topics
        .iter()
        .zip(known.iter())
        .filter(|(_, known)| known.is_none());
    if let Some(topic) = left.find_map(|(topic, _)| topic.as_ref()) {
        let answer = session.ask(topic, MOMENT).await;
        answer.map_err(|_| session.away(config.timeout))?;
    }
    let unconfirmed = match session.trouble() {
        Some(trouble) => Outcome::Retry(Cause::new(format!(
            "Kafka has not confirmed it in time: {}",
            trouble.words
        ))),
        None => not_confirmed(),
    };
    for known in known.iter_mut() {
        known.get_or_insert_with(|| unconfirmed.clone());
    }
    Ok(())
}

/// The batch's outcomes: behind a task of a key that is not delivered, none is.
fn settled(batch: &[Task], known: &Known) -> Vec<Outcome> {
    let mut order = Order::new(batch);
    while let Some(index) = order.take() {
        let outcome = known.get(index).cloned().flatten();
        order.settle(index, outcome.unwrap_or_else(not_confirmed));
    }
    order.outcomes()
}

fn set(known: &mut Known, index: usize, outcome: Outcome) {
    if let Some(known) = known.get_mut(index) {
        *known = Some(outcome);
    }
}

fn not_confirmed() -> Outcome {
    Outcome::Retry(Cause::new(
        "Kafka has not confirmed it in time: its partition may have no leader, or too few replicas in sync",
    ))
}
