//! What the servers say of themselves that concerns streams and lists: whether they take them, and whether they keep them.

use super::Shape;
use super::push::Pusher;
use super::script::{self, WORDING};
use crate::sink::redis_client::describe;
use crate::sink::redis_client::nodes::Errand;
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::redis_client::servers::Servers;
use crate::sink::redis_client::slots::slot;
use crate::sink::redis_client::url::Place;
use crate::sink::{Outage, Sight};

impl Pusher {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.look_around().await {
            Ok(sights) => sights,
            Err(Outage(cause)) => {
                self.nodes.forget();
                let remedy = "see to it that Redis runs, and that url names it";
                vec![Sight::Fault(cause.to_string(), remedy.to_owned())]
            }
        }
    }

    async fn look_around(&mut self) -> Result<Vec<Sight>, Outage> {
        let places = self.nodes.places().await?;
        let mut info = Vec::new();
        resp::write_command(&mut info, &[b"INFO"]);
        let name = self.name.fixed().map(|name| name.as_bytes().to_vec());
        let at = name.as_ref().map_or(0, |name| slot(name));
        let look = self.question(name.as_deref(), at);
        let ask = |slot: u16, request| Errand {
            slot,
            request: vec![request],
            commands: 1,
        };
        let infos: Vec<Errand<'_>> = places.iter().map(|(_, slot)| ask(*slot, &info)).collect();
        let answers = self.nodes.run(&infos).await;
        let mut sights = Vec::new();
        for ((place, _), answer) in places.iter().zip(answers) {
            let info = match answer?.pop() {
                Some(Reply::Bulk(Some(info))) => String::from_utf8_lossy(&info).into_owned(),
                _ => String::new(),
            };
            let seen = describe::settings(&info)
                .into_iter()
                .chain(self.replication(&info));
            let of_many = places.len() > 1;
            sights.extend(seen.map(|sight| {
                if of_many {
                    at_place(place, sight)
                } else {
                    sight
                }
            }));
        }
        let answer = self.nodes.run(&[ask(at, &look)]).await.pop();
        sights.extend(self.rights(answer.unwrap_or_else(|| Ok(Vec::new()))?.pop()));
        Ok(sights)
    }

    fn question(&self, name: Option<&[u8]>, slot: u16) -> Vec<u8> {
        let ledger = self.ledgers.key(&"", slot);
        let keys: Vec<&[u8]> = std::iter::once(ledger.as_bytes()).chain(name).collect();
        let count = keys.len().to_string();
        let push = match self.shape {
            Shape::Stream => b"XADD",
            Shape::List => self.how,
        };
        let mut request = Vec::new();
        let head = [b"EVAL", script::LOOK, count.as_bytes()];
        let arguments: Vec<&[u8]> = head.into_iter().chain(keys).chain([push]).collect();
        resp::write_command(&mut request, &arguments);
        request
    }

    fn rights(&self, answer: Option<Reply>) -> Vec<Sight> {
        let remedy = format!("ACL SETUSER ... {}, {}", WORDING.rights, WORDING.keys);
        let lacks = |words: String| vec![Sight::Fault(words, remedy.clone())];
        let parts = match answer {
            Some(Reply::Array(Some(parts))) => parts,
            Some(Reply::Error(refusal)) if refusal.code == "NOPERM" => {
                return lacks(format!("url's user lacks rights: {}", refusal.text));
            }
            Some(Reply::Error(refusal)) if refusal.text.contains("executing the script") => {
                return lacks("url's user lacks rights: TYPE".to_owned());
            }
            _ => return Vec::new(),
        };
        let mut words = parts.into_iter().filter_map(|part| match part {
            Reply::Bulk(Some(word)) => String::from_utf8(word).ok(),
            _ => None,
        });
        let (expected, kind) = match self.shape {
            Shape::Stream => ("stream", words.next()),
            Shape::List => ("list", words.next()),
        };
        let missing: Vec<String> = words.collect();
        let mut sights = Vec::new();
        if !missing.is_empty() {
            sights.extend(lacks(format!(
                "url's user lacks rights: {}",
                missing.join(", ")
            )));
        }
        if let (Some(name), Some(kind)) = (self.name.fixed(), kind)
            && kind != "none"
            && kind != expected
        {
            let words = format!("the key {name:?} is a {kind} and no {expected}");
            let remedy = "another program uses it: delete or rename it, or take another name";
            sights.push(Sight::Fault(words, remedy.to_owned()));
        }
        sights
    }

    fn replication(&self, info: &str) -> Option<Sight> {
        let replicas: u32 = describe::value(info, "connected_slaves")?.parse().ok()?;
        let fails_over = !matches!(self.nodes.servers(), Servers::One(_));
        if replicas < self.replicas {
            let words = format!(
                "{replicas} replicas are connected, and replicas = {}",
                self.replicas
            );
            return Some(Sight::Fault(
                words,
                "start more of them, or ask for fewer".to_owned(),
            ));
        }
        (fails_over && self.replicas == 0).then(|| {
            Sight::Risk(
                "a failover loses what the replica has not got yet".to_owned(),
                "set replicas = 1, where even that must not be lost".to_owned(),
            )
        })
    }
}

fn at_place(place: &Place, sight: Sight) -> Sight {
    let at = |words| format!("{place}: {words}");
    match sight {
        Sight::Good(words) => Sight::Good(at(words)),
        Sight::Risk(words, remedy) => Sight::Risk(at(words), remedy),
        Sight::Fault(words, remedy) => Sight::Fault(at(words), remedy),
    }
}
