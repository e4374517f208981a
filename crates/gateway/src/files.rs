//! Certificates from PEM files, and whether a file is still what it was.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, TrustAnchor};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Complaint;

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

/// The trust anchors of a PEM bundle.
///
/// # Errors
/// The file cannot be read, or has something that is no trust anchor.
pub fn read_anchors(path: &Path) -> Result<Vec<TrustAnchor<'static>>, Complaint> {
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

/// Says that a PEM file cannot be read.
pub(crate) fn unreadable(path: &Path, error: &pem::Error) -> Complaint {
    match error {
        pem::Error::Io(error) => Complaint::new(format!("{} cannot be read: {error}", path.display())),
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no PEM", path.display())),
        error => Complaint::new(format!("{} is no PEM: {error}", path.display())),
    }
}

/// What tells one content of a file from the next without reading it. Symbolic links are followed: swapping one, as
/// Kubernetes does, is a change. Asked for again and again rather than watched for: that works on every file system,
/// and for files that are not there yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// Of the file as it is now; `None`: there is none that can be looked at.
    pub fn of(path: &Path) -> Option<Self> {
        let file = std::fs::metadata(path).ok()?;
        Some(Self {
            device: file.dev(),
            inode: file.ino(),
            len: file.len(),
            modified: (file.mtime(), file.mtime_nsec()),
            changed: (file.ctime(), file.ctime_nsec()),
        })
    }
}
