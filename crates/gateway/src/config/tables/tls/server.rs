//! The server's certificates and private keys.

use std::path::{Path, PathBuf};

use super::table::{CertificatesTable, TlsTable};
use crate::config::diagnostics::{Complaint, Reported};
use crate::config::document::Document;
use crate::config::values::{Secret, Setting};

/// A certificate and its key.
#[derive(Debug)]
pub struct CertificateFiles {
    /// PEM file of the chain, leaf first.
    pub chain: PathBuf,
    /// Its private key.
    pub key: Setting<PrivateKey>,
}

/// The location of a private key.
#[derive(Clone, Debug)]
pub enum PrivateKey {
    /// A PEM file, and the passphrase that decrypts it.
    File(PathBuf, Option<Secret>),
    /// PKCS#11 URI of a key in a token, and the directory that paths in the URI are relative to.
    Pkcs11(Secret, PathBuf),
}

/// At least one certificate.
pub(super) fn validate(
    table: &Setting<TlsTable>,
    document: &mut Document,
) -> Result<Setting<Vec<CertificateFiles>>, Reported> {
    let hint = "a PEM file of the server's certificate chain, leaf first";
    let certificate = document.require(table.certificate.as_ref(), table, "certificate", hint)?;
    let mut files = Vec::new();
    match (&certificate.value, &table.private_key) {
        (CertificatesTable::One(chain), key) => {
            let hint = "a PEM file of the certificate's private key";
            let key = document.require(key.as_ref(), table, "private_key", hint)?;
            let passphrase = table.private_key_passphrase.as_ref().map(|passphrase| &passphrase.value);
            files
                .push(CertificateFiles { chain: document.resolve(chain), key: private_key(key, passphrase, document) });
        }
        (CertificatesTable::Many(_), Some(key)) => {
            let complaint = Complaint::new("each certificate in the list has its own key");
            return Err(document.error(key, complaint.hint("set `private_key` in each table of the list")));
        }
        (CertificatesTable::Many(pairs), None) => {
            for pair in pairs {
                let key = certificate.map(|_| pair.private_key.clone());
                let key = private_key(&key, pair.private_key_passphrase.as_ref(), document);
                files.push(CertificateFiles { chain: document.resolve(&pair.certificate), key });
            }
        }
    }
    if files.is_empty() {
        return Err(document.error(certificate, "`certificate` is an empty list"));
    }
    Ok(certificate.map(|_| files))
}

/// Parses a path or a PKCS#11 URI. The scheme is case-insensitive [RFC 3986, 3.1]: if `PKCS11:` counted as a path,
/// errors would show the PIN.
pub(in crate::config::tables) fn private_key(
    text: &Setting<String>,
    passphrase: Option<&Secret>,
    document: &Document,
) -> Setting<PrivateKey> {
    let is_uri = text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("pkcs11:"));
    text.map(|text| {
        if is_uri {
            PrivateKey::Pkcs11(Secret::new(text), document.resolve(Path::new("")))
        } else {
            PrivateKey::File(document.resolve(Path::new(text)), passphrase.cloned())
        }
    })
}
