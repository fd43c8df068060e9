//! Certificates for servers on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    date_time_ymd,
};
use tempfile::TempDir;

use super::process::scratch;

/// A certificate authority and two certificates of it, as PEM files: a server's, for `localhost` and 127.0.0.1, and that of
/// a client named [`CLIENT`].
pub(crate) struct Certificates {
    directory: TempDir,
}

/// The common name of the client.
pub(crate) const CLIENT: &str = "dispatcher";

impl Certificates {
    /// Makes new ones; no client trusts them unless it is given [`authority`](Certificates::authority).
    pub(crate) fn new() -> Certificates {
        Certificates::make(4096, &["localhost", "127.0.0.1"])
    }

    /// As [`new`](Certificates::new), but the server's has expired long ago.
    pub(crate) fn expired() -> Certificates {
        Certificates::make(2001, &["localhost", "127.0.0.1"])
    }

    /// As [`new`](Certificates::new), but the server's is for `localhost` only, by whatever address it is reached.
    pub(crate) fn by_name() -> Certificates {
        Certificates::make(4096, &["localhost"])
    }

    fn make(year: i32, names: &[&str]) -> Certificates {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // OpenSSL takes a certificate whose issuer has its own name for one that nobody else has signed.
        authority.distinguished_name = DistinguishedName::new();
        let name = &mut authority.distinguished_name;
        name.push(DnType::CommonName, "an authority");
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key"))
                .expect("an authority");
        let names: Vec<String> = names.iter().copied().map(str::to_owned).collect();
        let key = KeyPair::generate().expect("a key");
        let mut server = CertificateParams::new(names).expect("names");
        server.not_after = date_time_ymd(year, 1, 1);
        let certificate = server.signed_by(&key, &authority).expect("a certificate");
        let mut client = CertificateParams::default();
        client.distinguished_name = DistinguishedName::new();
        client.distinguished_name.push(DnType::CommonName, CLIENT);
        let client_key = KeyPair::generate().expect("a key");
        let client = client.signed_by(&client_key, &authority);
        let client = client.expect("a certificate");

        let certificates = Certificates {
            directory: scratch("tls"),
        };
        fs::write(certificates.authority(), authority.pem()).expect("ca.pem");
        fs::write(certificates.certificate(), certificate.pem()).expect("server.pem");
        fs::write(certificates.key(), key.serialize_pem()).expect("server.key");
        fs::write(certificates.client(), client.pem()).expect("client.pem");
        let client_key = client_key.serialize_pem();
        fs::write(certificates.client_key(), client_key).expect("client.key");
        // Postgres refuses a key that others may read.
        use std::os::unix::fs::PermissionsExt;
        fs::set_permissions(certificates.key(), fs::Permissions::from_mode(0o600)).expect("chmod");
        certificates
    }

    /// The authority's certificate, for clients.
    pub(crate) fn authority(&self) -> PathBuf {
        self.file("ca.pem")
    }

    /// The server's certificate.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.file("server.pem")
    }

    /// The server's private key.
    pub(crate) fn key(&self) -> PathBuf {
        self.file("server.key")
    }

    /// The client's certificate.
    pub(crate) fn client(&self) -> PathBuf {
        self.file("client.pem")
    }

    /// The client's private key.
    pub(crate) fn client_key(&self) -> PathBuf {
        self.file("client.key")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::join(self.directory.path(), name)
    }
}
