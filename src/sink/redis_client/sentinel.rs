//! Asks sentinels who the primary is (Redis documentation, "Redis Sentinel client spec").

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;

use super::connection::{Connection, Trouble};
use super::outcome::{self, Wording};
use super::resp::{self, Reply};
use super::servers::Servers;
use super::url::{Address, Place};
use crate::sink::{Cause, Outage};

/// One that does not answer within this is passed over.
const PATIENCE: Duration = Duration::from_secs(1);

/// What asking has shown.
#[derive(Debug)]
pub(in crate::sink) enum Found {
    /// The primary, as a sentinel knows it.
    Primary(Place),
    /// None of them knows that name.
    NobodyKnows,
    /// None of them answers; the last one's trouble, if it had any.
    NobodyAnswers(Place, Option<Trouble>),
}

impl Found {
    /// The primary's place, or the outage that there is none.
    pub(in crate::sink) fn place(
        self,
        servers: &Servers,
        wording: &Wording,
    ) -> Result<Place, Outage> {
        let outage = |words: String| Err(Outage(Cause::new(format!("{servers}: {words}"))));
        match self {
            Found::Primary(place) => Ok(place),
            Found::NobodyKnows => outage(
                "its sentinels know no primary of this name: see SENTINEL MASTERS".to_owned(),
            ),
            Found::NobodyAnswers(place, Some(trouble)) => {
                let Outage(cause) = outcome::outage(trouble, &place, wording);
                outage(format!("no sentinel answers: {cause}"))
            }
            Found::NobodyAnswers(place, None) => outage(format!(
                "no sentinel answers: {place} has not within {PATIENCE:?}"
            )),
        }
    }
}

/// Asks one after the other. The one that has answered comes first the next time.
pub(in crate::sink) async fn primary(
    sentinels: &mut [Address],
    service: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> Found {
    let mut found = Found::NobodyKnows;
    for nth in 0..sentinels.len() {
        let Some(sentinel) = sentinels.get(nth) else {
            break;
        };
        match timeout(PATIENCE, ask(sentinel, service, tls)).await {
            Ok(Ok(Some(place))) => {
                sentinels.swap(0, nth);
                return Found::Primary(place);
            }
            Ok(Ok(None)) => {}
            Ok(Err(trouble)) => {
                found = Found::NobodyAnswers(sentinel.place.clone(), Some(trouble));
            }
            Err(_) => found = Found::NobodyAnswers(sentinel.place.clone(), None),
        }
    }
    found
}

async fn ask(
    sentinel: &Address,
    service: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Option<Place>, Trouble> {
    let mut connection = Connection::open(sentinel, tls, &[]).await?;
    let mut request = Vec::new();
    let question = [b"SENTINEL", &b"GET-MASTER-ADDR-BY-NAME"[..]];
    resp::write_command(
        &mut request,
        &[question[0], question[1], service.as_bytes()],
    );
    let reply = connection.ask(&[IoSlice::new(&request)], 1).await?.pop();
    let parts = match reply {
        Some(Reply::Array(Some(parts))) => parts,
        Some(Reply::Array(None) | Reply::Bulk(None)) => return Ok(None),
        Some(Reply::Error(refusal)) => return Err(Trouble::Refused(refusal)),
        _ => return Err(Trouble::NotRedis),
    };
    let [Reply::Bulk(Some(host)), Reply::Bulk(Some(port))] = parts.as_slice() else {
        return Err(Trouble::NotRedis);
    };
    let host = std::str::from_utf8(host).map_err(|_| Trouble::NotRedis)?;
    let port = std::str::from_utf8(port)
        .ok()
        .and_then(|port| port.parse().ok());
    Ok(Some(Place::Tcp {
        host: host.to_owned(),
        port: port.ok_or(Trouble::NotRedis)?,
    }))
}
