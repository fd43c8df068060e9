//! The servers behind a URL, whichever form it has: finds the one that has a key's slot, and runs errands there, side by
//! side where they are for several nodes. A connection that has failed is not used again. The caller bounds every wait.

use std::collections::HashMap;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rustls::ClientConfig;
use tokio::time::timeout;

use super::connection::{Connection, Trouble};
use super::outcome::{self, Wording};
use super::resp::{self, Reply};
use super::sentinel;
use super::servers::Servers;
use super::slots::{Map, Redirect};
use super::url::{Address, Place};
use crate::sink::{Cause, Outage};

/// A node that does not say within this which slots are where is passed over.
const PATIENCE: Duration = Duration::from_secs(1);
/// What a cluster asks for beside what a single server does.
const RIGHTS: &str = "in a cluster ACL SETUSER ... +cluster|slots +asking";
/// So many nodes that the URL does not name are asked, where those that it names do not answer.
const OTHERS: usize = 4;
/// A slot that is on its way may be asked for at two or three nodes.
const REDIRECTS: usize = 5;

/// Commands for the keys of one slot.
#[derive(Debug)]
pub(in crate::sink) struct Errand<'a> {
    /// The slot; anything, where there is no cluster.
    pub(in crate::sink) slot: u16,
    /// The commands, in parts.
    pub(in crate::sink) request: Vec<&'a [u8]>,
    /// How many there are.
    pub(in crate::sink) commands: usize,
}

/// What came of an errand: a reply for each command.
pub(in crate::sink) type Errands = Vec<Result<Vec<Reply>, Outage>>;

/// The servers behind a URL.
pub(in crate::sink) struct Nodes {
    servers: Servers,
    tls: Option<Arc<ClientConfig>>,
    wording: &'static Wording,
    /// In nobody's hands while an errand is under way: one that is dropped midway takes its connection with it.
    links: HashMap<Place, Connection>,
    /// Where sentinels say that it is.
    primary: Option<Place>,
    /// Empty when it must be asked for.
    map: Map,
}

/// An errand on its way: its index, and the node to which it was redirected.
type OnItsWay = (usize, Option<Redirect>);

impl Nodes {
    pub(in crate::sink) fn new(
        servers: Servers,
        tls: Option<Arc<ClientConfig>>,
        wording: &'static Wording,
    ) -> Nodes {
        Nodes {
            servers,
            tls,
            wording,
            links: HashMap::new(),
            primary: None,
            map: Map::default(),
        }
    }

    pub(in crate::sink) fn servers(&self) -> &Servers {
        &self.servers
    }

    pub(in crate::sink) fn wording(&self) -> &'static Wording {
        self.wording
    }

    /// They are not what they were: connects anew, and asks again where the primary is, or the slots.
    pub(in crate::sink) fn forget(&mut self) {
        self.links.clear();
        self.primary = None;
        self.map.outdate();
    }

    /// The connection to the only server that there is. Whoever does not give it back closes it.
    ///
    /// # Errors
    /// The server is not there.
    pub(in crate::sink) async fn take(&mut self) -> Result<Taken, Outage> {
        let place = self.place(0).await?;
        let link = self.links.remove(&place);
        let visit = self.visit(&place, link);
        match visit.link().await {
            Ok(link) => Ok(Taken { place, link }),
            Err(trouble) => Err(self.lost(trouble, &place)),
        }
    }

    /// It has been used, and is good.
    pub(in crate::sink) fn give_back(&mut self, Taken { place, link }: Taken) {
        self.links.insert(place, link);
    }

    /// A connection has failed.
    pub(in crate::sink) fn lost(&mut self, trouble: Trouble, place: &Place) -> Outage {
        self.primary = None;
        self.map.outdate();
        self.trouble(trouble, place)
    }

    /// Runs errands, of which no two are for the same slot.
    pub(in crate::sink) async fn run(&mut self, errands: &[Errand<'_>]) -> Errands {
        let mut answers: Vec<_> = errands.iter().map(|_| None).collect();
        let mut under_way: Vec<OnItsWay> = (0..errands.len()).map(|at| (at, None)).collect();
        for _ in 0..REDIRECTS {
            if under_way.is_empty() {
                break;
            }
            under_way = self.go(errands, under_way, &mut answers).await;
        }
        let lost =
            || self.outage("its slots are on the move: an errand was sent from node to node");
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|| Err(lost())))
            .collect()
    }

    /// All once. Gives back those that are redirected.
    async fn go(
        &mut self,
        errands: &[Errand<'_>],
        under_way: Vec<OnItsWay>,
        answers: &mut [Option<Result<Vec<Reply>, Outage>>],
    ) -> Vec<OnItsWay> {
        let mut by_place: HashMap<Place, Vec<(usize, bool)>> = HashMap::new();
        for (at, redirect) in under_way {
            let place = match redirect {
                Some(Redirect::Moved(place)) => Ok((place, false)),
                Some(Redirect::Ask(place)) => Ok((place, true)),
                None => {
                    let slot = errands.get(at).map_or(0, |errand| errand.slot);
                    self.place(slot).await.map(|place| (place, false))
                }
            };
            match place {
                Ok((place, asking)) => by_place.entry(place).or_default().push((at, asking)),
                Err(outage) => put(answers, at, Err(outage)),
            }
        }
        let visits = by_place.into_iter().map(|(place, batch)| {
            let link = self.links.remove(&place);
            let visit = self.visit(&place, link);
            async move {
                let done = visit.run(errands, &batch).await;
                (place, batch, done)
            }
        });
        let mut redirected = Vec::new();
        for (place, batch, done) in join_all(visits).await {
            match done {
                Ok((link, replies)) => {
                    self.links.insert(place.clone(), link);
                    for ((at, _), replies) in batch.into_iter().zip(replies) {
                        let redirect = match replies.first() {
                            Some(Reply::Error(refusal)) if self.is_cluster() => {
                                Redirect::read(refusal, &place)
                            }
                            _ => None,
                        };
                        match redirect {
                            Some(redirect) => {
                                if matches!(redirect, Redirect::Moved(_)) {
                                    self.map.outdate();
                                }
                                redirected.push((at, Some(redirect)));
                            }
                            None => put(answers, at, Ok(replies)),
                        }
                    }
                }
                Err(trouble) => {
                    let outage = self.lost(trouble, &place);
                    for (at, _) in batch {
                        put(answers, at, Err(outage.clone()));
                    }
                }
            }
        }
        redirected
    }

    pub(in crate::sink) fn is_cluster(&self) -> bool {
        matches!(self.servers, Servers::Cluster { .. })
    }

    /// All primaries.
    ///
    /// # Errors
    /// They cannot be found out.
    pub(in crate::sink) async fn places(&mut self) -> Result<Vec<(Place, u16)>, Outage> {
        let first = self.place(0).await?;
        if !self.is_cluster() {
            return Ok(vec![(first, 0)]);
        }
        Ok(self.map.places())
    }

    /// Where a slot is.
    async fn place(&mut self, slot: u16) -> Result<Place, Outage> {
        match &mut self.servers {
            Servers::One(address) => Ok(address.place.clone()),
            Servers::Sentinel {
                sentinels, service, ..
            } => {
                if let Some(primary) = &self.primary {
                    return Ok(primary.clone());
                }
                let found = sentinel::primary(sentinels, service, self.tls.as_ref()).await;
                let place = found.place(&self.servers, self.wording)?;
                Ok(self.primary.insert(place).clone())
            }
            Servers::Cluster { .. } => {
                if self.map.is_empty() {
                    self.map = self.ask_map().await?;
                    let map = &self.map;
                    self.links.retain(|place, _| map.has(place));
                }
                match self.map.of(slot) {
                    Some(place) => Ok(place.clone()),
                    None => {
                        self.map.outdate();
                        Err(self.outage("no node of the cluster has all the slots that are needed"))
                    }
                }
            }
        }
    }

    /// Asks the nodes that are known, one after the other, which slots are where: those that the URL names may all be gone. Where
    /// one that it does not name was, there may be another cluster by now.
    async fn ask_map(&mut self) -> Result<Map, Outage> {
        let known: Vec<Place> = self.links.keys().cloned().collect();
        let seeds = match &self.servers {
            Servers::Cluster { seeds, .. } => seeds.as_slice(),
            _ => &[],
        };
        let mut last = self.outage("it has no nodes");
        let sure = known.len() + seeds.len();
        let others = self.map.nodes().filter(|place| !seeds.contains(place));
        let others = others.take(OTHERS);
        let all: Vec<Place> = known.iter().chain(seeds).chain(others).cloned().collect();
        for (nth, place) in all.into_iter().enumerate() {
            let mut request = Vec::new();
            resp::write_command(&mut request, &[b"CLUSTER", b"SLOTS"]);
            let errand = [Errand {
                slot: 0,
                request: vec![&request],
                commands: 1,
            }];
            let link = self.links.remove(&place);
            let visit = self.visit(&place, link);
            match timeout(PATIENCE, visit.run(&errand, &[(0, false)])).await {
                Ok(Ok((link, replies))) => {
                    let reply = replies.into_iter().flatten().next();
                    let map = reply.as_ref().and_then(|reply| Map::read(reply, &place));
                    last = match (map, reply) {
                        (Some(map), _) if nth >= sure && !map.is_akin(&self.map) => {
                            self.outage(&format!("{place} is of another cluster now"))
                        }
                        (Some(map), _) => {
                            self.links.insert(place, link);
                            return Ok(map);
                        }
                        (None, Some(Reply::Error(refusal))) if refusal.code == "NOPERM" => {
                            let url = self.wording.url;
                            self.outage(&format!("{place}: {url}'s user lacks rights: {RIGHTS}"))
                        }
                        (None, Some(Reply::Error(refusal))) => {
                            self.trouble(Trouble::Refused(refusal), &place)
                        }
                        (None, _) => self.trouble(Trouble::NotRedis, &place),
                    };
                }
                Ok(Err(trouble)) => last = self.trouble(trouble, &place),
                Err(_) => {
                    last = self.outage(&format!("{place} has not answered within {PATIENCE:?}"));
                }
            }
        }
        Err(last)
    }

    /// The way to a node, with the connection that there is.
    fn visit(&self, place: &Place, link: Option<Connection>) -> Visit {
        Visit {
            login: Address {
                name: self.map.name(place).cloned(),
                ..self.servers.login_at(place)
            },
            tls: self.tls.clone(),
            link,
        }
    }

    fn outage(&self, words: &str) -> Outage {
        Outage::new(Cause::new(format!("{}: {words}", self.servers)))
    }

    fn trouble(&self, trouble: Trouble, place: &Place) -> Outage {
        match &self.servers {
            Servers::One(address) => outcome::outage(trouble, address, self.wording),
            _ => outcome::outage(trouble, place, self.wording),
        }
    }
}

fn put(
    answers: &mut [Option<Result<Vec<Reply>, Outage>>],
    at: usize,
    answer: Result<Vec<Reply>, Outage>,
) {
    if let Some(place) = answers.get_mut(at) {
        *place = Some(answer);
    }
}

/// A connection, in somebody's hands.
pub(in crate::sink) struct Taken {
    pub(in crate::sink) place: Place,
    pub(in crate::sink) link: Connection,
}

/// A way to one node, with the connection that there is, if it is still good.
struct Visit {
    login: Address,
    tls: Option<Arc<ClientConfig>>,
    link: Option<Connection>,
}

impl Visit {
    async fn link(self) -> Result<Connection, Trouble> {
        if let Some(mut link) = self.link
            && !link.is_stale().await
        {
            return Ok(link);
        }
        Connection::open(&self.login, self.tls.as_ref(), &[]).await
    }

    /// Runs the errands of these indices in one go; `true` is for those that the node does not have yet.
    async fn run(
        self,
        errands: &[Errand<'_>],
        batch: &[(usize, bool)],
    ) -> Result<(Connection, Vec<Vec<Reply>>), Trouble> {
        let mut link = self.link().await?;
        let mut asking = Vec::new();
        resp::write_command(&mut asking, &[b"ASKING"]);
        let (mut request, mut expected) = (Vec::new(), 0);
        for (at, is_asking) in batch {
            let Some(errand) = errands.get(*at) else {
                continue;
            };
            // It holds for one command.
            if *is_asking {
                request.push(IoSlice::new(&asking));
                expected += 1;
            }
            request.extend(errand.request.iter().map(|part| IoSlice::new(part)));
            expected += errand.commands;
        }
        let replies = link.ask(&request, expected).await?;
        // Without a password of ours there was no login that could have been refused.
        if let Some(Reply::Error(refusal)) = replies.first()
            && refusal.code == "NOAUTH"
        {
            return Err(Trouble::Refused(refusal.clone()));
        }
        let mut replies = replies.into_iter();
        let mut answers = Vec::with_capacity(batch.len());
        for (at, is_asking) in batch {
            replies
                .by_ref()
                .take(usize::from(*is_asking))
                .for_each(drop);
            let commands = errands.get(*at).map_or(0, |errand| errand.commands);
            answers.push(replies.by_ref().take(commands).collect());
        }
        Ok((link, answers))
    }
}
