//! Raw public keys in TLS 1.3 [RFC 7250]. Enters: key fingerprints from a file or the registry. Leaves: the owner of a key
//! that a device presented. No CA is involved.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, SignatureScheme};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::keys::ServerKeys;
use crate::config::{Complaint, Diagnostics, Reported, Setting, tables};
use crate::devices::{Entry, Replica};
use crate::files::read_entries;
use crate::peer::Fingerprint;
use crate::refresh::FromFiles;
use crate::util::crypto::provider;

/// The raw public keys that a listener accepts.
#[derive(Debug)]
pub(super) struct KnownKeys {
    file: Option<FromFiles<Names>>,
    registry: Option<Arc<Replica>>,
    in_certificates: bool,
}

/// The name in the file, by the key's SHA-256 fingerprint.
type Names = HashMap<Fingerprint, Box<str>>;

/// The owner of a key.
#[derive(Clone)]
pub(super) enum Owner {
    /// The name in the file.
    Named(Box<str>),
    /// A device of the registry. It may be disabled or banned.
    Device(Arc<Entry>),
}

impl KnownKeys {
    pub(super) fn open(
        settings: &tables::RawKeys,
        registry: Option<&Arc<Replica>>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let open = |file: &Setting<PathBuf>| {
            FromFiles::open("raw public keys", file.value.clone(), read)
                .map_err(|complaint| diagnostics.error(file, complaint))
        };
        let file = settings.file.as_ref().map(open).transpose()?;
        let registry = registry.filter(|_| settings.registry).cloned();
        Ok(Self { file, registry, in_certificates: settings.certificates })
    }

    /// The owner of a key; `None` if the key is unknown.
    pub(super) fn owner(&self, fingerprint: &Fingerprint) -> Option<Owner> {
        let named = self.file.as_ref().and_then(|names| names.load().get(fingerprint).cloned());
        let device = || self.registry.as_ref()?.by_pin(fingerprint);
        named.map(Owner::Named).or_else(|| device().map(Owner::Device))
    }

    /// Whether the file still lists the key under this name.
    pub(super) fn is_named(&self, fingerprint: &Fingerprint, name: &str) -> bool {
        self.file.as_ref().is_some_and(|names| names.load().get(fingerprint).is_some_and(|found| **found == *name))
    }

    /// Whether devices may present their key in a self-signed certificate.
    pub(super) const fn in_certificates(&self) -> bool {
        self.in_certificates
    }

    pub(super) const fn registry(&self) -> Option<&Arc<Replica>> {
        self.registry.as_ref()
    }

    /// Reads the key file again if it has changed. Returns whether sessions have to be evaluated again.
    pub(super) fn read_changed_file(&self, listener: &str) -> bool {
        self.file.as_ref().is_some_and(|names| names.read_if_changed(listener))
    }
}

fn read(path: &Path) -> Result<Names, Complaint> {
    let mut names = Names::new();
    read_entries(path, |name, value| {
        let text = std::str::from_utf8(value).unwrap_or_default().trim();
        let fingerprint = fingerprint(text).ok_or(
            "expected the SHA-256 fingerprint of a public key (not of a certificate) in hex or base64 after the name",
        )?;
        match names.insert(fingerprint, name.into()) {
            Some(other) => Err(format!("the key is already listed for `{}`", other.escape_debug())),
            None => Ok(()),
        }
    })?;
    Ok(names)
}

/// Parses a SHA-256 in hex, as `openssl dgst` prints it, or in base64, as `curl --pinnedpubkey` takes it.
fn fingerprint(text: &str) -> Option<Fingerprint> {
    let bytes = match hex::decode(text.replace(':', "")) {
        Ok(bytes) => bytes,
        Err(_) => STANDARD.decode(text.strip_prefix("sha256//").unwrap_or(text)).ok()?,
    };
    bytes.try_into().ok()
}

/// Accepts any key that the device proves to own.
#[derive(Debug)]
pub(super) struct KeyVerifier {
    provider: Arc<CryptoProvider>,
}

impl KeyVerifier {
    pub(super) fn new() -> Self {
        Self { provider: provider() }
    }
}

impl ClientCertVerifier for KeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        // The key is looked up after the handshake, once the device has proved to own it.
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(PeerIncompatible::Tls12NotOfferedOrEnabled.into())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let key = SubjectPublicKeyInfoDer::from(cert.as_ref());
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// The server's own keys as raw public keys, for devices that pin them.
#[derive(Debug)]
pub(super) struct RawServerKeys(pub(super) Arc<ServerKeys>);

impl ResolvesServerCert for RawServerKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let pair = self.0.resolve(hello)?;
        let (_, certificate) = X509Certificate::from_der(pair.cert.first()?).ok()?;
        let key = CertificateDer::from(certificate.public_key().raw.to_vec());
        Some(Arc::new(CertifiedKey::new(vec![key], Arc::clone(&pair.key))))
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_in_both_forms() {
        let hex = "00ff".repeat(16);
        let bytes: Fingerprint = hex::decode(&hex).unwrap().try_into().unwrap();
        let base64 = STANDARD.encode(bytes);
        for text in [&hex, &hex.to_uppercase(), &base64, &format!("sha256//{base64}"), &"00:FF:".repeat(16)] {
            assert_eq!(fingerprint(text), Some(bytes), "{text}");
        }
        for wrong in ["", "00ff", &hex[1..], &base64[1..], &format!("sha1//{base64}"), &format!("{hex}00")] {
            assert_eq!(fingerprint(wrong), None, "{wrong}");
        }
    }
}
