//! The server's side of SASL: one user, who logs in with PLAIN or SCRAM (RFC 4616, RFC 5802).

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256, Sha512};

/// A way to log in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mechanism {
    Plain,
    ScramSha256,
    ScramSha512,
}

impl Mechanism {
    /// As the protocol calls it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mechanism::Plain => "PLAIN",
            Mechanism::ScramSha256 => "SCRAM-SHA-256",
            Mechanism::ScramSha512 => "SCRAM-SHA-512",
        }
    }

    fn hmac(self, key: &[u8], text: &[u8]) -> Vec<u8> {
        match self {
            Mechanism::ScramSha512 => {
                let mut mac = Hmac::<Sha512>::new_from_slice(key).expect("a key");
                mac.update(text);
                mac.finalize().into_bytes().to_vec()
            }
            _ => {
                let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("a key");
                mac.update(text);
                mac.finalize().into_bytes().to_vec()
            }
        }
    }

    fn hash(self, text: &[u8]) -> Vec<u8> {
        match self {
            Mechanism::ScramSha512 => Sha512::digest(text).to_vec(),
            _ => Sha256::digest(text).to_vec(),
        }
    }

    fn salted(self, password: &str, salt: &[u8], rounds: u32) -> Vec<u8> {
        let password = password.as_bytes();
        let mut last = self.hmac(password, &[salt, &1_u32.to_be_bytes()].concat());
        let mut sum = last.clone();
        for _ in 1..rounds {
            last = self.hmac(password, &last);
            sum = xor(&sum, &last);
        }
        sum
    }
}

fn xor(a: &[u8], b: &[u8]) -> Vec<u8> {
    a.iter().zip(b).map(|(a, b)| a ^ b).collect()
}

const SALT: &[u8] = b"0123456789abcdef";
const ROUNDS: u32 = 4096;

/// What the server answers.
#[derive(Debug)]
pub(crate) enum Step {
    /// There is more to say.
    On(Vec<u8>),
    /// Let in.
    Done(Vec<u8>),
    Refused,
}

/// One login.
pub(crate) struct Login {
    mechanism: Mechanism,
    user: String,
    password: Option<String>,
    /// The client's first words, without what precedes them, and ours.
    said: Option<(String, String)>,
}

impl Login {
    /// Of this user alone; without a password, of nobody.
    pub(crate) fn new(mechanism: Mechanism, user: &str, password: Option<&str>) -> Login {
        Login {
            mechanism,
            user: user.to_owned(),
            password: password.map(str::to_owned),
            said: None,
        }
    }

    /// The client says this.
    pub(crate) fn hear(&mut self, words: &[u8]) -> Step {
        let Ok(words) = std::str::from_utf8(words) else {
            return Step::Refused;
        };
        let step = match (self.mechanism, self.said.take()) {
            (Mechanism::Plain, _) => {
                let right = |password| format!("\0{}\0{password}", self.user);
                let right = self.password.as_deref().map(right);
                (right.as_deref() == Some(words)).then(|| Step::Done(Vec::new()))
            }
            (_, None) => self.first(words),
            (_, Some((client, server))) => self.last(&client, &server, words),
        };
        step.unwrap_or(Step::Refused)
    }

    fn first(&mut self, words: &str) -> Option<Step> {
        let bare = words.strip_prefix("n,,")?;
        let (user, nonce) = bare.strip_prefix("n=")?.split_once(",r=")?;
        let salt = BASE64.encode(SALT);
        let ours = format!("r={nonce}{:016x},s={salt},i={ROUNDS}", fastrand::u64(..));
        if user != self.user {
            return None;
        }
        self.said = Some((bare.to_owned(), ours.clone()));
        Some(Step::On(ours.into_bytes()))
    }

    fn last(&self, client: &str, server: &str, words: &str) -> Option<Step> {
        let (unproven, proof) = words.split_once(",p=")?;
        let nonce = server.split(',').next()?;
        if unproven != format!("c=biws,{nonce}") {
            return None;
        }
        let all = format!("{client},{server},{unproven}");
        let salted = self
            .mechanism
            .salted(self.password.as_deref()?, SALT, ROUNDS);
        let key = self.mechanism.hmac(&salted, b"Client Key");
        let stored = self.mechanism.hash(&key);
        let right = xor(&key, &self.mechanism.hmac(&stored, all.as_bytes()));
        if BASE64.decode(proof).ok()? != right {
            return None;
        }
        let ours = self.mechanism.hmac(&salted, b"Server Key");
        let signature = BASE64.encode(self.mechanism.hmac(&ours, all.as_bytes()));
        Some(Step::Done(format!("v={signature}").into_bytes()))
    }
}
