//! Which server certificates are good enough.
//!
//! The chain, the name and the signatures are checked by rustls and webpki; this file only decides which of the
//! checks the rules ask for. The signature of the handshake is always checked: without it Postgres's channel binding
//! would prove nothing.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
    verify_tls13_signature_with_raw_key,
};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

/// Whose certificates are good.
#[derive(Debug)]
pub(super) enum Trust {
    /// Anybody's.
    Anyone,
    /// Those that these authorities issued, and the listed ones themselves.
    Of {
        authorities: RootCertStore,
        listed: Vec<CertificateDer<'static>>,
    },
}

impl Trust {
    /// The authorities of the operating system; `setting` is where a file could be named instead.
    pub(super) fn system(setting: &str) -> Result<Trust, String> {
        let found = rustls_native_certs::load_native_certs();
        let mut authorities = RootCertStore::empty();
        let (usable, _) = authorities.add_parsable_certificates(found.certs);
        if usable == 0 {
            return Err(format!(
                "this system has no certificate authorities: install ca-certificates, or name a file in {setting}"
            ));
        }
        let listed = Vec::new();
        Ok(Trust::Of {
            authorities,
            listed,
        })
    }

    pub(super) fn these(listed: Vec<CertificateDer<'static>>) -> Result<Trust, String> {
        let mut authorities = RootCertStore::empty();
        for certificate in &listed {
            authorities
                .add(certificate.clone())
                .map_err(|e| format!("a certificate is not usable: {e}"))?;
        }
        Ok(Trust::Of {
            authorities,
            listed,
        })
    }
}

/// The checks that are asked for.
#[derive(Debug)]
pub(super) struct Verifier {
    pub(super) trust: Trust,
    pub(super) check_name: bool,
    pub(super) algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Trust::Of {
            authorities,
            listed,
        } = &self.trust
        else {
            return Ok(ServerCertVerified::assertion());
        };
        let certificate = ParsedCertificate::try_from(end_entity)?;
        // A self-signed certificate, listed as its own authority, as in Postgres's documentation: OpenSSL takes it,
        // webpki takes no authority for a server.
        if listed.iter().any(|known| known == end_entity) {
            within_its_time(end_entity, now)?;
        } else {
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                authorities,
                intermediates,
                now,
                self.algorithms.all,
            )?;
        }
        if self.check_name {
            verify_server_name(&certificate, server_name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let checked = verify_tls13_signature(message, certificate, signature, &self.algorithms);
        match (&self.trust, checked) {
            // webpki reads no certificate of version 1, which "openssl x509 -req" made before 3.2. Where nobody
            // asks what it says, its key is enough.
            (Trust::Anyone, Err(rustls::Error::InvalidCertificate(_))) => {
                let key = public_key(certificate).ok_or(CertificateError::BadEncoding)?;
                verify_tls13_signature_with_raw_key(message, &key, signature, &self.algorithms)
            }
            (_, checked) => checked,
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn public_key(certificate: &CertificateDer<'_>) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let parsed = Certificate::from_der(certificate).ok()?;
    let key = parsed.tbs_certificate.subject_public_key_info;
    Some(key.to_der().ok()?.into())
}

fn within_its_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let parsed = Certificate::from_der(certificate).map_err(|_| CertificateError::BadEncoding)?;
    let validity = parsed.tbs_certificate.validity;
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        Err(CertificateError::NotValidYet.into())
    } else if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        Err(CertificateError::Expired.into())
    } else {
        Ok(())
    }
}
