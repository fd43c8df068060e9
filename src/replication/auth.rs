//! Proving who we are (Postgres documentation, chapter "Authentication Methods").
//!
//! SCRAM-SHA-256, with channel binding over TLS, md5, and the password itself, which only goes over TLS.

use bytes::BytesMut;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::backend::{AuthenticationSaslBody, Message};
use postgres_protocol::message::frontend;
use secrecy::ExposeSecret;
use tokio_postgres::fallible_iterator::FallibleIterator;

use super::end_point::end_point;
use super::error::{Error, Place};
use super::session::{Incoming, Session};
use super::socket::Socket;
use super::target::{ChannelBinding, Target};

/// Answers the server's demands until it says AuthenticationOk.
pub(super) async fn authenticate(session: &mut Session, target: &Target) -> Result<(), Error> {
    let demand = expect(session).await?;
    session.place = Place::Authentication;
    if !matches!(demand, Message::AuthenticationSasl(_))
        && target.channel_binding == ChannelBinding::Require
    {
        return Err(refused(
            session,
            "channel_binding=require, and the server does not ask for SCRAM",
        ));
    }
    match demand {
        Message::AuthenticationOk => return Ok(()),
        Message::AuthenticationSasl(body) => scram(session, target, &body).await?,
        Message::AuthenticationMd5Password(body) => {
            let password = password(session, target)?;
            let hash = md5_hash(target.user.as_bytes(), password, body.salt());
            answer(session, hash.as_bytes()).await?;
        }
        Message::AuthenticationCleartextPassword => {
            let password = password(session, target)?;
            if !session.socket.is_tls() {
                return Err(refused(
                    session,
                    "the server asks for the password in the clear, over a connection without TLS. Use \
                     sslmode=verify-full, or scram-sha-256 in pg_hba.conf",
                ));
            }
            answer(session, password).await?;
        }
        Message::AuthenticationKerberosV5
        | Message::AuthenticationScmCredential
        | Message::AuthenticationGss
        | Message::AuthenticationSspi => {
            return Err(refused(
                session,
                "the server asks for GSSAPI, SSPI or Kerberos, which are not supported. Give this role \
                 scram-sha-256 or cert in pg_hba.conf",
            ));
        }
        _ => return Err(session.unexpected()),
    }
    match expect(session).await? {
        Message::AuthenticationOk => Ok(()),
        _ => Err(session.unexpected()),
    }
}

/// The next message, unless it is an error.
async fn expect(session: &mut Session) -> Result<Message, Error> {
    match session.receive().await? {
        Incoming::Message(message) => Ok(message),
        Incoming::Error(message) => Err(session.failed(message)),
        Incoming::CopyBoth => Err(session.unexpected()),
    }
}

async fn answer(session: &mut Session, password: &[u8]) -> Result<(), Error> {
    let mut frame = BytesMut::new();
    frontend::password_message(password, &mut frame).map_err(|_| session.unexpected())?;
    session.send(&frame).await
}

async fn scram(
    session: &mut Session,
    target: &Target,
    offer: &AuthenticationSaslBody,
) -> Result<(), Error> {
    let offered: Vec<&str> = offer
        .mechanisms()
        .collect()
        .map_err(|_| session.unexpected())?;
    let bound = match target.channel_binding {
        ChannelBinding::Disable => None,
        ChannelBinding::Prefer | ChannelBinding::Require => binding(&session.socket),
    };
    let plus = offered.contains(&sasl::SCRAM_SHA_256_PLUS);
    let (mechanism, binding) = match bound {
        Some(hash) if plus => (
            sasl::SCRAM_SHA_256_PLUS,
            sasl::ChannelBinding::tls_server_end_point(hash),
        ),
        _ if target.channel_binding == ChannelBinding::Require => {
            return Err(refused(
                session,
                "channel_binding=require, and this connection has none to offer: it needs TLS, a server of 11 or \
                 newer, and a certificate signed with RSA or ECDSA",
            ));
        }
        // Tells the server that we could have: if it could too, somebody between us has taken its offer away.
        Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested()),
        None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported()),
    };
    if !offered.contains(&mechanism) {
        return Err(refused(
            session,
            "the server offers no SCRAM-SHA-256. Give this role scram-sha-256 or cert in pg_hba.conf",
        ));
    }
    let mut scram = sasl::ScramSha256::new(password(session, target)?, binding);
    let mut frame = BytesMut::new();
    frontend::sasl_initial_response(mechanism, scram.message(), &mut frame)
        .map_err(|_| session.unexpected())?;
    session.send(&frame).await?;
    let Message::AuthenticationSaslContinue(body) = expect(session).await? else {
        return Err(session.unexpected());
    };
    scram
        .update(body.data())
        .map_err(|e| not_the_server(session, &e))?;
    frame.clear();
    frontend::sasl_response(scram.message(), &mut frame).map_err(|_| session.unexpected())?;
    session.send(&frame).await?;
    let Message::AuthenticationSaslFinal(body) = expect(session).await? else {
        return Err(session.unexpected());
    };
    scram
        .finish(body.data())
        .map_err(|e| not_the_server(session, &e))
}

/// What this connection can be bound to.
fn binding(socket: &Socket) -> Option<Vec<u8>> {
    let Socket::Tls(stream) = socket else {
        return None;
    };
    let certificates = stream.get_ref().1.peer_certificates()?;
    end_point(certificates.first()?)
}

fn password<'a>(session: &Session, target: &'a Target) -> Result<&'a [u8], Error> {
    match &target.password {
        Some(password) => Ok(password.expose_secret().as_bytes()),
        None => Err(refused(
            session,
            "the server asks for a password and none is configured. Put it into the URL or password_file",
        )),
    }
}

fn not_the_server(session: &Session, e: &std::io::Error) -> Error {
    refused(
        session,
        &format!("the server's part of SCRAM is wrong ({e}): this may not be your server"),
    )
}

fn refused(session: &Session, words: &str) -> Error {
    Error::refused(session.place, words).with(&session.context)
}
