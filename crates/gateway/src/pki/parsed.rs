//! Certificates of verified paths, parsed. Enters: DER. Leaves: what the gateway wants to know of it, shared by all sessions
//! whose path has this certificate: parsing a path costs 20 µs, and its intermediates are those of the whole fleet. Not here:
//! whether a certificate is trusted, valid or revoked; that changes, and is evaluated each time.

use std::sync::{Arc, LazyLock};

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{ChainCertificate, IssuerId, Serial, VerifiedChain, distribution_points, responder};
use crate::outcome::{ChainError, note_detail};
use crate::peer::Certificate;
use crate::trust::{may_sign_certificates, may_sign_handshakes};
use crate::util::crypto::sha256;
use crate::util::recent::Recent;

/// The limit of memory for certificates that are kept, in bytes. Those of 2,000 devices fit.
const MAX_BYTES: usize = 8 << 20;
/// What a certificate takes besides three times its length: once as it is, and as text.
const OVERHEAD: usize = 1 << 10;

/// A certificate, parsed.
#[derive(Debug)]
struct ParsedCertificate {
    /// SHA-256 of its DER.
    digest: [u8; 32],
    /// Its identity as an authority.
    id: IssuerId,
    may_sign_handshakes: bool,
    may_sign_certificates: bool,
    /// Its fields, for expressions and logs.
    certificate: Arc<Certificate>,
    /// `None`: it has more than 20 octets.
    serial: Option<Serial>,
    distribution_points: Option<Vec<String>>,
    responder: Option<String>,
}

impl ParsedCertificate {
    /// From DER; `None`: it cannot be parsed.
    fn of(der: &[u8]) -> Option<Arc<Self>> {
        static PARSED: LazyLock<Recent<Arc<ParsedCertificate>>> = LazyLock::new(|| Recent::new(MAX_BYTES));
        let digest = sha256(der);
        if let Some(known) = PARSED.get(&digest) {
            return Some(known);
        }
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let parsed = Arc::new(Self {
            digest,
            id: IssuerId::of(&certificate),
            may_sign_handshakes: may_sign_handshakes(&certificate),
            may_sign_certificates: may_sign_certificates(&certificate),
            certificate: Arc::new(Certificate::of(der, &certificate)?),
            serial: Serial::new(certificate.raw_serial()),
            distribution_points: distribution_points(&certificate),
            responder: responder(&certificate),
        });
        PARSED.add(digest, Arc::clone(&parsed), 3 * der.len() + OVERHEAD);
        Some(parsed)
    }

    /// As a certificate of a chain; `None`: its serial number is too long.
    fn issued_by(&self, issuer: IssuerId) -> Option<ChainCertificate> {
        Some(ChainCertificate {
            issuer,
            serial: self.serial?,
            not_before: self.certificate.not_before,
            not_after: self.certificate.not_after,
            distribution_points: self.distribution_points.clone(),
            responder: self.responder.clone(),
        })
    }
}

/// Takes the certificates of a verified path, the device's own first, up to the one that `anchor` issued. Returns the chain, and
/// the device's own certificate.
///
/// # Errors
/// A certificate cannot be parsed, has a serial number of more than 20 octets, or a keyUsage that does not allow what it is
/// used for.
pub(super) fn verified_chain(
    path: &[CertificateDer<'_>],
    anchor: IssuerId,
) -> Result<(VerifiedChain, Arc<Certificate>), ChainError> {
    let parsed = path.iter().map(|der| ParsedCertificate::of(der));
    let parsed: Vec<_> = parsed.collect::<Option<_>>().ok_or(ChainError::Malformed)?;
    let (leaf, authorities) = parsed.split_first().ok_or(ChainError::Malformed)?;
    if !leaf.may_sign_handshakes {
        note_detail("its key usage lacks digitalSignature");
        return Err(ChainError::Purpose);
    }
    if let Some(authority) = authorities.iter().find(|authority| !authority.may_sign_certificates) {
        let subject = authority.certificate.subject.dn.as_deref().unwrap_or_default();
        note_detail(&format!("`{subject}`, which issued it, has a key usage without keyCertSign"));
        return Err(ChainError::NotACa);
    }
    let issuers = authorities.iter().map(|authority| authority.id).chain([anchor]);
    let links: Option<Vec<_>> = parsed.iter().zip(issuers).map(|(it, issuer)| it.issued_by(issuer)).collect();
    let chain = VerifiedChain::new(leaf.digest, links.ok_or(ChainError::Malformed)?).ok_or(ChainError::Malformed)?;
    Ok((chain, Arc::clone(&leaf.certificate)))
}

/// The fields of a device's certificate, whose chain was verified; `None`: it cannot be parsed.
pub(crate) fn parse_verified(der: &[u8]) -> Option<Arc<Certificate>> {
    ParsedCertificate::of(der).map(|parsed| Arc::clone(&parsed.certificate))
}
