//! Floor 0: TLS for our clients. Whom to trust, whether the name counts, and who we are, from settings and
//! files to rustls's configuration.

mod verifier;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::{AlertDescription, CertificateError, ClientConfig};
use rustls_pki_types::pem::{self, PemObject};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use verifier::{Trust, Verifier};

/// Whether a certificate is not yet valid, or not any more: somebody will renew it, or a clock is wrong.
pub fn is_out_of_time(error: &CertificateError) -> bool {
    use CertificateError as Bad;
    matches!(
        error,
        Bad::Expired
            | Bad::ExpiredContext { .. }
            | Bad::NotValidYet
            | Bad::NotValidYetContext { .. }
    )
}

/// Whether an alert says that the other end does not like our certificate (RFC 8446, section 6.2).
pub fn refuses_ours(alert: AlertDescription) -> bool {
    use AlertDescription as Alert;
    matches!(
        alert,
        Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            | Alert::DecryptError
            | Alert::CertificateRequired
    )
}

/// What the server's certificate is checked against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Roots {
    /// Nothing: any certificate will do.
    Unverified,
    /// The authorities of the operating system.
    System,
    /// A file of certificates, PEM: authorities, or the server's own.
    File(PathBuf),
}

/// How a TLS session is to be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rules {
    /// Whose certificates are good.
    pub roots: Roots,
    /// Whether the certificate must be for the host's name.
    pub check_name: bool,
    /// Our certificate chain and its key, PEM.
    pub client: Option<(PathBuf, PathBuf)>,
}

/// What the operator calls the settings that name files; for messages.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// The file of [`Roots::File`].
    pub roots: &'static str,
    /// The file of our certificate chain.
    pub certificate: &'static str,
    /// The file of its key.
    pub key: &'static str,
}

/// Reads the files that the rules name, and makes rustls's configuration. Blocks while it reads.
///
/// # Errors
/// The setting and the file that do not do, and why.
pub fn client_config(rules: &Rules, names: Names) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trust = match &rules.roots {
        Roots::Unverified => Trust::Anyone,
        Roots::System => Trust::system(names.roots)?,
        Roots::File(path) => Trust::these(certificates(names.roots, path)?)
            .map_err(|words| format!("{} {}: {words}", names.roots, path.display()))?,
    };
    let verifier = Verifier {
        trust,
        check_name: rules.check_name,
        algorithms: provider.signature_verification_algorithms,
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let Some((certificate, key)) = &rules.client else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = certificates(names.certificate, certificate)?;
    builder
        .with_client_auth_cert(chain, private_key(names.key, key)?)
        .map_err(|e| {
            let (setting, path) = (names.certificate, certificate.display());
            format!("{setting} {path} and {} do not fit: {e}", names.key)
        })
}

fn certificates(setting: &str, path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let place = || format!("{setting} {}", path.display());
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|e| unreadable(&place(), e))?;
    if certificates.is_empty() {
        return Err(format!(
            "{}: the file holds no certificate in PEM form",
            place()
        ));
    }
    Ok(certificates)
}

fn private_key(setting: &str, path: &Path) -> Result<PrivateKeyDer<'static>, String> {
    let place = format!("{setting} {}", path.display());
    PrivateKeyDer::from_pem_file(path).map_err(|e| match e {
        pem::Error::NoItemsFound => {
            format!("{place}: the file holds no private key in PEM form; an encrypted one is not supported")
        }
        e => unreadable(&place, e),
    })
}

fn unreadable(place: &str, e: pem::Error) -> String {
    match e {
        pem::Error::Io(e) => format!("{place}: {e}"),
        _ => format!("{place}: the file is not valid PEM"),
    }
}
