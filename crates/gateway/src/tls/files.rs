//! Certificates and keys from PEM files.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor};
use rustls::sign::CertifiedKey;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::provider;
use crate::config::{Complaint, Document, is_exposed};

/// The certificates of a PEM file, in its order; at least one.
///
/// # Errors
/// The file cannot be read, or has none.
pub fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Complaint> {
    let chain: Vec<_> = CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|error| unreadable(path, &error))?;
    if chain.is_empty() {
        let complaint = Complaint::new(format!("{} contains no certificate", path.display()));
        return Err(complaint.hint("a PEM file with `-----BEGIN CERTIFICATE-----` is wanted"));
    }
    Ok(chain)
}

/// A chain and its key, which must belong together.
pub(super) fn read_pair(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, Complaint> {
    let certificates = read_chain(chain)?;
    let der = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no private key", key.display()))
            .hint("PKCS#8, SEC1 or PKCS#1 without a passphrase is wanted"),
        error => unreadable(key, &error),
    })?;
    match CertifiedKey::from_der(certificates, der, &provider()) {
        Ok(pair) => Ok(Arc::new(pair)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let message = format!("{} is not the key of {}", key.display(), chain.display());
            Err(Complaint::new(message).hint("the certificate file has to begin with the server's own certificate"))
        }
        Err(error) => Err(Complaint::new(format!("{} cannot be used: {error}", key.display()))),
    }
}

/// The trust anchors of a PEM bundle.
pub(super) fn read_anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, Complaint> {
    let anchor = |certificate: &CertificateDer<'_>| webpki::anchor_from_trusted_cert(certificate).map(|a| a.to_owned());
    let anchors: Result<Vec<_>, _> = read_chain(path)?.iter().map(anchor).collect();
    anchors.map_err(|error| Complaint::new(format!("{}: not a trust anchor: {error}", path.display())))
}

/// When the first certificate of a PEM file expires, in seconds since 1970.
///
/// # Errors
/// The file cannot be read, or has no certificate that can be.
pub fn expiry(path: &Path) -> Result<i64, Complaint> {
    let not_after = |der: &CertificateDer<'_>| {
        X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.validity().not_after.timestamp())
    };
    let complaint = || Complaint::new(format!("{} contains something that is no certificate", path.display()));
    let expiries: Option<Vec<i64>> = read_chain(path)?.iter().map(not_after).collect();
    expiries.and_then(|all| all.into_iter().min()).ok_or_else(complaint)
}

/// Warns of a private key that everybody can read.
pub(super) fn warn_if_exposed(key: &Path, span: &Range<usize>, document: &mut Document) {
    if is_exposed(key) {
        let message = format!("everybody on this machine can read the private key {}", key.display());
        document.problems.warning(span, message).hint(format!("chmod 600 {}", key.display()));
    }
}

fn unreadable(path: &Path, error: &pem::Error) -> Complaint {
    match error {
        pem::Error::Io(error) => Complaint::new(format!("{} cannot be read: {error}", path.display())),
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no PEM", path.display())),
        error => Complaint::new(format!("{} is no PEM: {error}", path.display())),
    }
}
