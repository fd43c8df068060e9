//! Asks sentinels who the primary is (Redis documentation, "Redis Sentinel client spec").

use std::io::IoSlice;
use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use tokio::time::timeout;

use super::connection::{Connection, Trouble};
use super::outcome::{self, Wording};
use super::resp::{self, Refusal, Reply};
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
    /// None of them answers, or only with a refusal; one's trouble, if it had any.
    NobodyAnswers(Place, Option<Trouble>),
}

impl Found {
    /// How much it tells. A refusal tells more than silence: the others might say the same.
    fn weight(&self) -> u8 {
        match self {
            Found::Primary(_) => 4,
            Found::NobodyKnows => 3,
            Found::NobodyAnswers(_, Some(Trouble::Refused(_) | Trouble::NotRedis)) => 2,
            Found::NobodyAnswers(_, Some(Trouble::Unreachable(e))) => {
                u8::from(e.get_ref().is_some_and(|inner| inner.is::<rustls::Error>()))
            }
            Found::NobodyAnswers(..) => 0,
        }
    }

    /// The primary's place, or the outage that there is none.
    pub(in crate::sink) fn place(
        self,
        servers: &Servers,
        wording: &Wording,
    ) -> Result<Place, Outage> {
        let outage = |words: String| Err(Outage::new(Cause::new(format!("{servers}: {words}"))));
        match self {
            Found::Primary(place) => Ok(place),
            Found::NobodyKnows => outage(
                "its sentinels know no primary of this name: see SENTINEL MASTERS".to_owned(),
            ),
            Found::NobodyAnswers(place, Some(Trouble::Refused(refusal))) => {
                outage(format!("{place}: {}", refused(&refusal)))
            }
            Found::NobodyAnswers(place, Some(trouble)) => {
                let Outage { cause, .. } = outcome::outage(trouble, &place, wording);
                outage(format!("no sentinel answers: {cause}"))
            }
            Found::NobodyAnswers(place, None) => {
                let expected = match servers {
                    Servers::Sentinel { sentinels, .. }
                        if sentinels.iter().any(|sentinel| sentinel.tls.is_some()) =>
                    {
                        ": is this its port of TLS?"
                    }
                    _ => "",
                };
                outage(format!(
                    "no sentinel answers: {place} has not within {PATIENCE:?}{expected}"
                ))
            }
        }
    }
}

/// Asks one after the other. The one that has answered comes first the next time.
pub(in crate::sink) async fn primary(
    sentinels: &mut [Address],
    service: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> Found {
    let mut found: Option<Found> = None;
    for nth in 0..sentinels.len() {
        let Some(sentinel) = sentinels.get(nth) else {
            break;
        };
        let one = match timeout(PATIENCE, ask(sentinel, service, tls)).await {
            Ok(Ok(Some(place))) => {
                sentinels.swap(0, nth);
                return Found::Primary(place);
            }
            Ok(Ok(None)) => Found::NobodyKnows,
            Ok(Err(trouble)) => Found::NobodyAnswers(sentinel.place.clone(), Some(trouble)),
            Err(_) => Found::NobodyAnswers(sentinel.place.clone(), None),
        };
        if found
            .as_ref()
            .is_none_or(|found| found.weight() <= one.weight())
        {
            found = Some(one);
        }
    }
    found.unwrap_or(Found::NobodyKnows)
}

/// What the refusal of a sentinel means: its users are not those of Redis.
fn refused(refusal: &Refusal) -> String {
    match refusal.code.as_str() {
        "NOAUTH" => "the sentinel asks for a password: give sentinel_password".to_owned(),
        "WRONGPASS" => {
            "the sentinel refuses sentinel_password, or sentinel_username with it".to_owned()
        }
        "NOPERM" => {
            "the sentinel's user may not ask: ACL SETUSER ... +sentinel|get-master-addr-by-name"
                .to_owned()
        }
        code => format!(
            "the sentinel refuses: {}",
            outcome::worded(code, &refusal.text)
        ),
    }
}

async fn ask(
    sentinel: &Address,
    service: &str,
    tls: Option<&Arc<ClientConfig>>,
) -> Result<Option<Place>, Trouble> {
    let tls = tls.filter(|_| sentinel.tls.is_some());
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
