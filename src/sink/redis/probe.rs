//! What the servers say of themselves that concerns streams and lists: whether they take them, and whether they keep them.

use super::form::Look;
use super::push::Pusher;
use super::script;
use crate::sink::redis_client::describe;
use crate::sink::redis_client::nodes::Errand;
use crate::sink::redis_client::outcome::shown;
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::redis_client::servers::Servers;
use crate::sink::redis_client::slots::slot;
use crate::sink::redis_client::url::Place;
use crate::sink::{Outage, Sight};

impl Pusher {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.look_around().await {
            Ok(sights) => sights,
            Err(Outage { cause, .. }) => {
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
        let look = self.form.look();
        let at = look.keys.first().map_or(0, |(key, _)| slot(key));
        let question = self.question(&look, at);
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
        let answer = self.nodes.run(&[ask(at, &question)]).await.pop();
        let answer = answer.unwrap_or_else(|| Ok(Vec::new()))?.pop();
        sights.extend(self.rights(&look, answer));
        Ok(sights)
    }

    fn question(&self, look: &Look, slot: u16) -> Vec<u8> {
        let ledger = self.ledgers.key(&"", slot).into_bytes();
        let commands: [&[&[u8]]; 6] = [
            &[b"HGET", &ledger, b""],
            &[b"HSET", &ledger, b"", b""],
            &[b"HDEL", &ledger, b""],
            &[b"HKEYS", &ledger],
            &[b"HMGET", &ledger, b""],
            &[b"EXPIRE", &ledger, b"1"],
        ];
        let ours = commands.into_iter().map(<[&[u8]]>::to_vec);
        let theirs = look.commands.iter();
        let theirs = theirs.map(|words| words.iter().map(Vec::as_slice).collect());
        let commands: Vec<Vec<&[u8]>> = ours.chain(theirs).collect();
        let words = commands.iter().map(|words| 1 + words.len()).sum::<usize>();
        let mut request = Vec::new();
        resp::write_header(&mut request, b'*', 4 + look.keys.len() + words);
        let mut write = |argument: &[u8]| resp::write_bulk(&mut request, argument);
        write(b"EVAL");
        write(script::LOOK);
        write((1 + look.keys.len()).to_string().as_bytes());
        write(&ledger);
        look.keys.iter().for_each(|(key, _)| write(key));
        for words in commands {
            write(words.len().to_string().as_bytes());
            words.into_iter().for_each(&mut write);
        }
        request
    }

    fn rights(&self, look: &Look, answer: Option<Reply>) -> Vec<Sight> {
        let wording = self.nodes.wording();
        let remedy = format!("ACL SETUSER ... {}, {}", wording.rights, wording.keys);
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
        // The first one is the ledger, which the first batch looks at.
        let kinds: Vec<String> = words.by_ref().take(1 + look.keys.len()).collect();
        let missing: Vec<String> = words.collect();
        let mut sights = Vec::new();
        if !missing.is_empty() {
            sights.extend(lacks(format!(
                "url's user lacks rights: {}",
                missing.join(", ")
            )));
        }
        for ((name, expected), kind) in look.keys.iter().zip(kinds.iter().skip(1)) {
            if kind != "none" && kind != expected {
                let words = format!("the key {} is a {kind} and no {expected}", shown(name));
                let remedy = "another program uses it: delete or rename it, or take another name";
                sights.push(Sight::Fault(words, remedy.to_owned()));
            }
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
