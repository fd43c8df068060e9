//! Who we are: user and password, a token, a key (nkey), or a credentials file with a JWT and its key.
//!
//! Files of keys are read at each connection, so that a rotated one is picked up by the next.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use secrecy::{ExposeSecret as _, SecretString};

use super::protocol::Login;
use super::servers::Server;

/// How we log in, unless a server's URL says it.
#[derive(Clone, Debug, Default)]
pub(super) enum Identity {
    /// As the URL says.
    #[default]
    Url,
    Password(String, SecretString),
    Token(SecretString),
    /// A file that holds the seed of a key.
    Key(PathBuf),
    /// A file that holds a JWT, and the seed of its key.
    Credentials(PathBuf),
}

impl Identity {
    /// What CONNECT says of us. Reads the file, if there is one: blocks a little.
    ///
    /// # Errors
    /// The file that does not do, and why; never what is in it.
    pub(super) fn login(&self, server: &Server, nonce: &str) -> Result<Login, String> {
        let mut login = Login::default();
        let open = |secret: &SecretString| Some(secret.expose_secret().to_owned());
        match self {
            Identity::Url => {
                let secret = server.secret.as_ref().and_then(open);
                login.user.clone_from(&server.user);
                match server.user {
                    Some(_) => login.pass = secret,
                    None => login.auth_token = secret,
                }
            }
            Identity::Password(user, password) => {
                login.user = Some(user.clone());
                login.pass = open(password);
            }
            Identity::Token(token) => login.auth_token = open(token),
            Identity::Key(path) => {
                let text = read("nkey_seed_file", path)?;
                let line = text.lines().map(str::trim);
                let seed = line.clone().find(|line| line.starts_with("SU"));
                let key = key(seed, "nkey_seed_file", path)?;
                login.nkey = Some(key.public_key());
                login.sig = Some(sign(&key, nonce)?);
            }
            Identity::Credentials(path) => {
                let text = read("credentials_file", path)?;
                let jwt = block(&text, "NATS USER JWT");
                let key = key(block(&text, "USER NKEY SEED"), "credentials_file", path)?;
                let jwt = jwt.ok_or_else(|| {
                    format!("credentials_file {} holds no user JWT", path.display())
                })?;
                login.jwt = Some(jwt.to_owned());
                login.sig = Some(sign(&key, nonce)?);
            }
        }
        Ok(login)
    }
}

fn read(setting: &str, path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| format!("{setting} {}: {e}", path.display()))
}

fn key(seed: Option<&str>, setting: &str, path: &Path) -> Result<KeyPair, String> {
    let key = seed.and_then(|seed| KeyPair::from_seed(seed).ok());
    key.ok_or_else(|| format!("{setting} {} holds no seed of a user's key", path.display()))
}

fn sign(key: &KeyPair, nonce: &str) -> Result<String, String> {
    if nonce.is_empty() {
        return Err("the server asks for no signature: it knows neither keys nor JWTs".to_owned());
    }
    let signature = key.sign(nonce.as_bytes());
    let signature = signature.map_err(|_| "the key does not sign: is it a seed?".to_owned())?;
    Ok(BASE64_URL_SAFE_NO_PAD.encode(signature))
}

/// The line between `-----BEGIN name-----` and the next dashes.
fn block<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.contains("BEGIN") && line.contains(name))?;
    lines
        .find(|line| !line.is_empty())
        .filter(|line| !line.starts_with('-'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::nats::servers;

    /// What CONNECT says, with this text in the file.
    fn login(kind: fn(PathBuf) -> Identity, text: &str, nonce: &str) -> Result<Login, String> {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), text).expect("it is written");
        let servers = servers::parse("nats://h").expect("a URL");
        kind(file.path().to_owned()).login(&servers[0], nonce)
    }

    #[test]
    fn files_of_keys() {
        let pair = KeyPair::new_user();
        let seed = pair.seed().expect("a seed");
        let credentials = format!(
            "-----BEGIN NATS USER JWT-----\nabc.def\n------END NATS USER JWT------\n\n****** IMPORTANT ******\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        let with_jwt = login(Identity::Credentials, &credentials, "nonce").expect("a login");
        assert_eq!(with_jwt.jwt.as_deref(), Some("abc.def"));
        assert_eq!(with_jwt.nkey, None);
        let with_key = login(Identity::Key, &format!("# x\n {seed} \n"), "nonce").expect("a login");
        assert_eq!(with_key.nkey, Some(pair.public_key()));
        for login in [with_jwt, with_key] {
            let signature = BASE64_URL_SAFE_NO_PAD.decode(login.sig.expect("a signature"));
            assert!(pair.verify(b"nonce", &signature.expect("base64")).is_ok());
        }
        for (kind, text, nonce, words) in [
            (
                Identity::Key as fn(PathBuf) -> Identity,
                "",
                "n",
                "holds no seed",
            ),
            (Identity::Key, "SUxx", "n", "holds no seed"),
            (Identity::Key, &seed, "", "asks for no signature"),
            (Identity::Credentials, &seed, "n", "holds no seed"),
            (
                Identity::Credentials,
                &credentials.replace("JWT", "XYZ"),
                "n",
                "holds no user JWT",
            ),
        ] {
            let Err(error) = login(kind, text, nonce) else {
                panic!("{words}")
            };
            assert!(error.contains(words), "{error}");
            assert!(!error.contains(&seed), "{error}");
        }
    }
}
