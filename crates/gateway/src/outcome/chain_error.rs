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
    /// The extended key usage does not include client authentication.
    Purpose => CertificatePurpose, Some(CloseReason::CaRemoved);
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
            webpki::Error::MaximumPathDepthExceeded | webpki::Error::PathLenConstraintViolated => ChainError::TooLong,
            webpki::Error::CertExpired { .. } => ChainError::Expired,
            webpki::Error::CertNotValidYet { .. } => ChainError::NotYetValid,
            webpki::Error::UnsupportedCertVersion => ChainError::Version,
            webpki::Error::RequiredEkuNotFoundContext(_) => ChainError::Purpose,
            webpki::Error::BadDer | webpki::Error::BadDerTime | webpki::Error::TrailingData(_) => ChainError::Malformed,
            webpki::Error::InvalidSignatureForPublicKey => ChainError::BadSignature,
            // webpki's enum is non-exhaustive.
            _ => ChainError::Invalid,
        }
    }
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
