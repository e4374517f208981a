//! Signatures on CRLs and OCSP responses. Enters: DER and a signer's certificate. Leaves: whether its key signed it.

use rustls::pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::der_parser::asn1_rs::{Any, FromDer};

use crate::util::crypto::provider;

/// `SIGNED { tbs, algorithm, signature }` [X.509], split into its parts. Nothing is verified yet.
pub(super) struct Signed<'d> {
    /// The signed value, with its tag and length.
    pub(super) tbs: &'d [u8],
    /// The content of the AlgorithmIdentifier.
    algorithm: &'d [u8],
    signature: &'d [u8],
    /// What follows the signature.
    pub(super) rest: &'d [u8],
}

impl<'d> Signed<'d> {
    /// Splits a DER value; `None` if it does not have this form.
    pub(super) fn from_der(der: &'d [u8]) -> Option<Self> {
        let (_, outer) = Any::from_der(der).ok()?;
        let (rest, _) = Any::from_der(outer.data).ok()?;
        let tbs = &outer.data[..outer.data.len() - rest.len()];
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (rest, signature) = Any::from_der(rest).ok()?;
        // A BIT STRING starts with its number of unused bits: none, if it is whole octets.
        let [0, signature @ ..] = signature.data else { return None };
        Some(Self { tbs, algorithm: algorithm.data, signature, rest })
    }

    /// Whether the key of the certificate `signer`, in DER, made the signature.
    pub(super) fn is_by(&self, signer: &[u8]) -> bool {
        is_signed_by(signer, self.algorithm, self.tbs, self.signature)
    }
}

/// Whether the key of the certificate `signer` signed `message`. `algorithm` is the content of the AlgorithmIdentifier;
/// a signature by an algorithm that the provider does not support, for instance SHA-1, is not valid.
pub(super) fn is_signed_by(signer: &[u8], algorithm: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let signer = CertificateDer::from(signer);
    let Ok(signer) = EndEntityCert::try_from(&signer) else { return false };
    let algorithms = provider().signature_verification_algorithms.all;
    let mut fitting = algorithms.iter().filter(|known| known.signature_alg_id().as_ref() == algorithm);
    // ECDSA's identifier does not name the curve: several algorithms may fit, and each checks the key's curve.
    fitting.any(|algorithm| signer.verify_signature(*algorithm, message, signature).is_ok())
}
