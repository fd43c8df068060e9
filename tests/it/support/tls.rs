//! Certificates for servers on this machine.

use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use tempfile::TempDir;

use super::process::scratch;

/// A certificate authority and a certificate of it for `localhost` and 127.0.0.1, as PEM files.
pub(crate) struct Certificates {
    directory: TempDir,
}

impl Certificates {
    /// Makes new ones; no client trusts them unless it is given [`authority`](Certificates::authority).
    pub(crate) fn new() -> Certificates {
        Certificates::until(4096)
    }

    /// As [`new`](Certificates::new), and long gone by.
    pub(crate) fn expired() -> Certificates {
        Certificates::until(2001)
    }

    fn until(year: i32) -> Certificates {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority =
            CertifiedIssuer::self_signed(authority, KeyPair::generate().expect("a key"))
                .expect("an authority");
        let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let key = KeyPair::generate().expect("a key");
        let mut certificate = CertificateParams::new(names).expect("parameters");
        certificate.not_after = date_time_ymd(year, 1, 1);
        let certificate = certificate.signed_by(&key, &authority);
        let certificate = certificate.expect("a certificate");

        let certificates = Certificates {
            directory: scratch("tls"),
        };
        fs::write(certificates.authority(), authority.pem()).expect("ca.pem");
        fs::write(certificates.certificate(), certificate.pem()).expect("server.pem");
        fs::write(certificates.key(), key.serialize_pem()).expect("server.key");
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

    fn file(&self, name: &str) -> PathBuf {
        Path::join(self.directory.path(), name)
    }
}
