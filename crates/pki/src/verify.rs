//! Verifies a certificate as its users will: one that nobody accepts must not be issued.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::Certificate;
use rustls_pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::pem::Pem;

use crate::{Error, Purpose, Request};

/// Verifies a new certificate against its issuer and the root. A responder's certificate is for other verifiers, and its
/// purpose is not checked.
///
/// # Errors
/// No verifier accepts it: for instance, one of its names is not permitted by the issuer's name constraints.
pub(crate) fn verify(leaf: &Certificate, issuer: &Pem, root: &Pem, request: &Request) -> Result<(), Error> {
    let usage = match request.purpose {
        Purpose::Server => KeyUsage::server_auth(),
        Purpose::Device => KeyUsage::client_auth(),
        Purpose::Ocsp => return Ok(()),
    };
    let (issuer, root) =
        (CertificateDer::from(issuer.contents.as_slice()), CertificateDer::from(root.contents.as_slice()));
    let algorithms = webpki::ALL_VERIFICATION_ALGS;
    let verified = anchor_from_trusted_cert(&root).and_then(|anchor| {
        let leaf = EndEntityCert::try_from(leaf.der())?;
        leaf.verify_for_usage(algorithms, &[anchor], &[issuer], now(), usage, None, None).map(drop)
    });
    verified.map_err(|error| match error {
        webpki::Error::NameConstraintViolation => {
            Error::Name(request.name.clone(), "a name is not permitted by the authority's name constraints")
        }
        webpki::Error::CertExpired { .. } => Error::Name(request.name.clone(), "the authority has expired"),
        _ => Error::Name(request.name.clone(), "no verifier would accept the certificate"),
    })
}

/// A minute from now: certificates are valid from the moment of their issue, in whole seconds.
fn now() -> UnixTime {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixTime::since_unix_epoch(now + Duration::from_secs(60))
}
