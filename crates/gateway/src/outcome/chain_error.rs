//! The reasons for rejecting a client's certificate chain, at the handshake or while the device is connected.

use std::fmt;

use super::{CloseReason, Reject};

macro_rules! chain_errors {
    ($($(#[$doc:meta])+ $name:ident => $reject:ident, $close_reason:expr;)+) => {
        /// Why a client's certificate chain is rejected.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ChainError { $($(#[$doc])+ $name,)+ }

        impl ChainError {
            /// Every error.
            pub const ALL: &'static [ChainError] = &[$(ChainError::$name,)+];

            /// The reason for rejecting a client that presents the chain.
            pub const fn reject(self) -> Reject {
                match self { $(ChainError::$name => Reject::$reject,)+ }
            }

            /// The reason for closing a session that relies on the chain. `None`: the session continues.
            pub const fn close_reason(self) -> Option<CloseReason> {
                match self { $(ChainError::$name => $close_reason,)+ }
            }
        }
    };
}

chain_errors! {
    /// The chain does not end at a configured trust anchor.
    UnknownCa => UnknownCa, Some(CloseReason::CaRemoved);
    /// The chain has more intermediates than allowed, or is too large.
    TooLong => CertificateChainTooLong, Some(CloseReason::CaRemoved);
    /// A certificate has expired.
    Expired => CertificateExpired, Some(CloseReason::CertificateExpired);
    /// A certificate is not valid yet. For a live session, this means that the clock was set back.
    NotYetValid => CertificateNotYetValid, None;
    /// The certificate is X.509 version 1.
    Version => CertificateVersion, Some(CloseReason::CaRemoved);
    /// The extended key usage does not include client authentication, or the key usage no digital signatures.
    Purpose => CertificatePurpose, Some(CloseReason::CaRemoved);
    /// A certificate that issued another one is not that of a CA.
    NotACa => CertificateNotCa, Some(CloseReason::CaRemoved);
    /// A name in the certificate is not among those that its CA may certify.
    Name => CertificateName, Some(CloseReason::CaRemoved);
    /// A certificate cannot be parsed.
    Malformed => CertificateInvalid, Some(CloseReason::CaRemoved);
    /// A signature is invalid.
    BadSignature => CertificateInvalid, Some(CloseReason::CaRemoved);
    /// A certificate violates another rule of RFC 5280, section 6.
    Invalid => CertificateInvalid, Some(CloseReason::CaRemoved);
    /// A certificate is revoked.
    Revoked => CertificateRevoked, Some(CloseReason::CertificateRevoked);
    // The next three prove nothing against the device. If they closed sessions, an outage of a CA would disconnect the
    // fleet.
    /// No CRL covers a certificate.
    CrlMissing => CrlMissing, None;
    /// The CRL that covers a certificate is out of date.
    CrlExpired => CrlExpired, None;
    /// No OCSP responder gave a usable response about a certificate.
    OcspMissing => OcspMissing, None;
}

impl From<webpki::Error> for ChainError {
    fn from(error: webpki::Error) -> Self {
        match error {
            webpki::Error::UnknownIssuer => ChainError::UnknownCa,
            webpki::Error::MaximumPathDepthExceeded
            | webpki::Error::PathLenConstraintViolated
            | webpki::Error::MaximumPathBuildCallsExceeded
            | webpki::Error::MaximumSignatureChecksExceeded => ChainError::TooLong,
            webpki::Error::CertExpired { .. } => ChainError::Expired,
            webpki::Error::CertNotValidYet { .. } => ChainError::NotYetValid,
            webpki::Error::UnsupportedCertVersion => ChainError::Version,
            webpki::Error::RequiredEkuNotFoundContext(_) => ChainError::Purpose,
            webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => ChainError::Malformed,
            webpki::Error::EndEntityUsedAsCa => ChainError::NotACa,
            webpki::Error::NameConstraintViolation => ChainError::Name,
            webpki::Error::InvalidSignatureForPublicKey => ChainError::BadSignature,
            // webpki's enum is non-exhaustive.
            _ => ChainError::Invalid,
        }
    }
}

/// Describes why webpki rejects a certificate, in the words of RFC 5280.
pub fn describe_webpki(error: &webpki::Error) -> String {
    use webpki::Error as E;
    let text = match error {
        E::UnknownIssuer => "no trusted CA issued it, or an intermediate certificate is missing",
        E::CertExpired { .. } => "a certificate of its chain has expired",
        E::CertNotValidYet { .. } => "a certificate of its chain is not valid yet",
        E::MaximumPathBuildCallsExceeded | E::MaximumSignatureChecksExceeded => {
            "it comes with several certificates that could have issued each other; send only its own chain"
        }
        E::MaximumPathDepthExceeded => "its chain has more intermediates than allowed",
        E::PathLenConstraintViolated => {
            "its chain has more intermediates than the path length of one of its CAs allows"
        }
        E::UnsupportedCertVersion => "it is not X.509 version 3",
        E::RequiredEkuNotFoundContext(context) if context.required == webpki::KeyUsage::client_auth() => {
            "its extended key usage, or that of a CA above it, lacks clientAuth"
        }
        E::RequiredEkuNotFoundContext(_) => "its extended key usage, or that of a CA above it, lacks serverAuth",
        E::EndEntityUsedAsCa => "a certificate that issued another one is not that of a CA (basicConstraints)",
        E::CaUsedAsEndEntity => {
            "it is the certificate of a CA (CA:TRUE); issue the device one with CA:FALSE, or accept its key with \
             [listener.tls.raw_keys] and `certificates = true`"
        }
        E::NameConstraintViolation => "one of its names is not permitted by the name constraints of its CA",
        E::InvalidSignatureForPublicKey => "a signature of its chain is invalid",
        E::UnsupportedCriticalExtension => "it has a critical extension that is not supported",
        E::UnsupportedSignatureAlgorithmContext(_) | E::UnsupportedSignatureAlgorithmForPublicKeyContext(_) => {
            "a signature of its chain has an algorithm that is not supported"
        }
        E::InvalidSerialNumber => "its serial number is invalid",
        E::BadDer | E::BadDerTime | E::TrailingData(_) => "it is malformed",
        E::InvalidCertValidity => "its validity ends before it begins",
        other => return format!("it is not acceptable ({other})"),
    };
    text.to_owned()
}

impl From<ChainError> for Reject {
    fn from(error: ChainError) -> Self {
        error.reject()
    }
}

impl fmt::Display for ChainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.reject().label())
    }
}

impl std::error::Error for ChainError {}
