//! Certificates of verified paths, parsed. Enters: DER. Leaves: what the gateway wants to know of it, shared by all sessions
//! whose path has this certificate: parsing a path costs 20 µs, and its intermediates are those of the whole fleet. Not here:
//! whether a certificate is trusted, valid or revoked; that changes, and is evaluated each time.

use std::sync::{Arc, LazyLock};

use x509_parser::prelude::{FromDer, X509Certificate};

use super::chain::{ChainCertificate, IssuerId, Serial, distribution_points, responder};
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
pub(super) struct ParsedCertificate {
    /// SHA-256 of its DER.
    pub(super) digest: [u8; 32],
    /// Its identity as an authority.
    pub(super) id: IssuerId,
    pub(super) may_sign_handshakes: bool,
    pub(super) may_sign_certificates: bool,
    /// Its fields, for expressions and logs.
    pub(super) certificate: Arc<Certificate>,
    /// `None`: it has more than 20 octets.
    serial: Option<Serial>,
    distribution_points: Option<Vec<String>>,
    responder: Option<String>,
}

impl ParsedCertificate {
    /// From DER; `None`: it cannot be parsed.
    pub(super) fn of(der: &[u8]) -> Option<Arc<Self>> {
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
    pub(super) fn issued_by(&self, issuer: IssuerId) -> Option<ChainCertificate> {
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

/// The fields of a device's certificate, whose chain was verified; `None`: it cannot be parsed.
pub(crate) fn parse_verified(der: &[u8]) -> Option<Arc<Certificate>> {
    ParsedCertificate::of(der).map(|parsed| Arc::clone(&parsed.certificate))
}
