//! What a Redis says of itself that concerns its lists: whether it takes them, and whether it keeps them.

use std::io::IoSlice;

use super::redis::Redis;
use super::refusals::outage;
use crate::sink::redis_client::connection::Trouble;
use crate::sink::redis_client::describe;
use crate::sink::redis_client::resp::{self, Reply};
use crate::sink::{Outage, Sight};

impl Redis {
    pub(super) async fn look(&mut self) -> Vec<Sight> {
        match self.ask_about().await {
            Ok((info, kind)) => {
                let mut sights = describe::settings(&info);
                sights.extend(list(self.queue(), &kind));
                sights.extend(self.fails_over().then(|| {
                    Sight::Risk(
                        "a failover loses what the replica has not got yet".to_owned(),
                        "set min-replicas-to-write 1 at the servers, which makes that little"
                            .to_owned(),
                    )
                }));
                sights
            }
            Err(Outage { cause, .. }) => vec![Sight::Fault(
                cause.to_string(),
                "see to it that Redis runs and that broker_url is the Celery application's"
                    .to_owned(),
            )],
        }
    }

    /// What INFO answers, and what is under the queue's key.
    async fn ask_about(&mut self) -> Result<(String, String), Outage> {
        let mut link = self.connect().await?;
        let mut request = Vec::new();
        resp::write_command(&mut request, &[b"INFO"]);
        resp::write_command(&mut request, &[b"TYPE", &self.queue_key()]);
        let asked = link.connection.ask(&[IoSlice::new(&request)], 2).await;
        let mut replies = asked.map_err(|trouble| outage(trouble, self.address()))?;
        let kind = match replies.pop() {
            Some(Reply::Simple(kind)) => kind,
            _ => String::new(),
        };
        let info = match replies.pop() {
            Some(Reply::Bulk(Some(info))) => String::from_utf8_lossy(&info).into_owned(),
            Some(Reply::Error(_)) => String::new(),
            _ => return Err(outage(Trouble::NotRedis, self.address())),
        };
        Ok((info, kind))
    }
}

fn list(queue: &str, kind: &str) -> Option<Sight> {
    match kind {
        "list" | "none" | "" => None,
        other => Some(Sight::Fault(
            format!("the key {queue:?} is a {other} and no list"),
            "another program uses it: delete or rename it, or take another queue".to_owned(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_another_type_is_told() {
        assert_eq!(list("q", "none"), None);
        assert_eq!(list("q", "list"), None);
        assert!(matches!(list("q", "set"), Some(Sight::Fault(..))));
    }
}
