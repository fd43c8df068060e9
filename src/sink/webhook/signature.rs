//! Pure: signatures as of Standard Webhooks (specification 1.0, "Signature scheme"): HMAC-SHA256 over `id.timestamp.body`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use secrecy::{ExposeSecret as _, SecretString};
use sha2::Sha256;

const PREFIX: &str = "whsec_";
/// The specification's bounds for a secret, in bytes.
const LENGTHS: std::ops::RangeInclusive<usize> = 24..=64;
/// More than this at a time is no rotation.
const MOST: usize = 8;

/// Signs with one or several secrets at once, so that they can be changed without a gap.
#[derive(Clone)]
pub(super) struct Signer {
    /// Keyed, and fed with nothing yet.
    keys: Vec<Hmac<Sha256>>,
}

impl Signer {
    /// Reads secrets, separated by white space.
    ///
    /// # Errors
    /// What is wrong with them, and how they are written; begins with a verb.
    pub(super) fn new(secrets: &SecretString) -> Result<Signer, String> {
        let keys = secrets.expose_secret().split_whitespace().map(key);
        let keys: Vec<_> = keys.collect::<Result<_, _>>()?;
        match keys.len() {
            0 => Err("is empty: write a secret such as whsec_..., or take the key out".to_owned()),
            1..=MOST => Ok(Signer { keys }),
            _ => Err(format!(
                "holds more than {MOST} secrets: keep those that receivers still check"
            )),
        }
    }

    /// The header `webhook-signature`.
    pub(super) fn sign(&self, id: &str, timestamp: &str, body: &[u8]) -> String {
        let mut header = String::new();
        for key in &self.keys {
            let mut mac = key.clone();
            for part in [id.as_bytes(), b".", timestamp.as_bytes(), b".", body] {
                mac.update(part);
            }
            if !header.is_empty() {
                header.push(' ');
            }
            header.push_str("v1,");
            STANDARD.encode_string(mac.finalize().into_bytes(), &mut header);
        }
        header
    }
}

fn key(secret: &str) -> Result<Hmac<Sha256>, String> {
    const REMEDY: &str = "write whsec_ and 24 to 64 random bytes in base64: \
                          echo whsec_$(head -c 32 /dev/urandom | base64)";
    let Some(encoded) = secret.strip_prefix(PREFIX) else {
        return Err(format!("does not begin with whsec_: {REMEDY}"));
    };
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| format!("is no base64 behind whsec_: {REMEDY}"))?;
    if !LENGTHS.contains(&bytes.len()) {
        return Err(format!("holds {} bytes: {REMEDY}", bytes.len()));
    }
    Hmac::new_from_slice(&bytes).map_err(|_| format!("is no key: {REMEDY}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Computed with Python's `hmac`, over a message as in the specification's tests.
    const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
    const OTHER: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    const ID: &str = "msg_p5jXN8AQM9LWM0D4loKWxJek";
    const BODY: &[u8] = b"{\"test\": 2432232314}";

    fn signer(secrets: &str) -> Result<Signer, String> {
        Signer::new(&secrets.to_owned().into())
    }

    #[test]
    fn signs_as_others_do() {
        let signed = signer(SECRET).map(|signer| signer.sign(ID, "1614265330", BODY));
        assert_eq!(
            signed.as_deref(),
            Ok("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
    }

    #[test]
    fn several_secrets_sign_at_once() {
        let both = signer(&format!("{SECRET}\n{OTHER}\n")).map(|s| s.sign(ID, "1", BODY));
        let each = [SECRET, OTHER].map(|secret| signer(secret).map(|s| s.sign(ID, "1", BODY)));
        let [Ok(one), Ok(other)] = each else {
            panic!("{each:?}");
        };
        assert_eq!(both, Ok(format!("{one} {other}")));
    }

    #[test]
    fn what_is_no_secret_is_refused_and_not_repeated() {
        let short = "whsec_c2hvcnQ=";
        let long = format!("whsec_{}", STANDARD.encode([7; 65]));
        for bad in ["", " \n", "hunter2hunter2", "whsec_hunter2!", short, &long] {
            let words = signer(bad).err().expect("it is refused");
            assert!(!words.contains("hunter2"), "{words}");
        }
        let many = [SECRET; MOST + 1].join(" ");
        assert!(signer(&many).is_err());
    }
}
