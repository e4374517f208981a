//! Why a client's certificate chain is not accepted, at the handshake or later.

use std::fmt;

use super::{CloseReason, Reject};

macro_rules! chain_errors {
    ($($(#[$doc:meta])+ $name:ident => $reject:ident, $close_reason:expr;)+) => {
        /// Why a client's certificate chain is not accepted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ChainError { $($(#[$doc])+ $name,)+ }

        impl ChainError {
            /// Every error.
            pub const ALL: &'static [ChainError] = &[$(ChainError::$name,)+];

            /// The reason for rejecting a client that presents the chain.
            pub const fn reject(self) -> Reject {
                match self { $(ChainError::$name => Reject::$reject,)+ }
            }

            /// The reason for closing a session that rests on the chain. `None`: the session goes on.
            pub const fn close_reason(self) -> Option<CloseReason> {
                match self { $(ChainError::$name => $close_reason,)+ }
            }
        }
    };
}

chain_errors! {
    /// No configured trust anchor has issued the chain.
    UnknownCa => UnknownCa, Some(CloseReason::CaRemoved);
    /// There are more intermediates than are allowed, or the chain is too large.
    TooLong => CertificateChainTooLong, Some(CloseReason::CaRemoved);
    /// A certificate has expired.
    Expired => CertificateExpired, Some(CloseReason::CertificateExpired);
    /// A certificate is not valid yet. It was when the session began: the clock was set back.
    NotYetValid => CertificateNotYetValid, None;
    /// The certificate is X.509 version 1.
    Version => CertificateVersion, Some(CloseReason::CaRemoved);
    /// The certificate is not for client authentication.
    Purpose => CertificatePurpose, Some(CloseReason::CaRemoved);
    /// A certificate cannot be parsed.
    Malformed => CertificateInvalid, Some(CloseReason::CaRemoved);
    /// A signature is wrong.
    BadSignature => CertificateInvalid, Some(CloseReason::CaRemoved);
    /// A certificate breaks another rule of RFC 5280, section 6.
    Invalid => CertificateInvalid, Some(CloseReason::CaRemoved);
    /// A certificate is revoked.
    Revoked => CertificateRevoked, Some(CloseReason::CertificateRevoked);
    // The next three say nothing about the device. If they ended sessions, an outage of a CA would be one of the fleet.
    /// No CRL covers a certificate.
    CrlMissing => CrlMissing, None;
    /// The CRL that covers a certificate is out of date.
    CrlExpired => CrlExpired, None;
    /// No OCSP responder gave a usable answer about a certificate.
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
            // The enum of webpki is open.
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
