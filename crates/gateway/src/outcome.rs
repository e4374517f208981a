//! Why a connection ended: two closed lists, of refusals and of ends of a session, and what each is called, whose fault
//! it is, which status it is logged with and what the client is told. A new variant does not compile until all of this
//! is said.

use portcullis_wire::{Disconnect, Error as WireError, Refusal, Rule};

/// How far a connection had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Stage {
    Accept,
    Handshake,
    Connect,
    Admit,
    Upstream,
    Relay,
}

impl Stage {
    /// As the log says it.
    pub const fn label(self) -> &'static str {
        match self {
            Stage::Accept => "accept",
            Stage::Handshake => "handshake",
            Stage::Connect => "connect",
            Stage::Admit => "admit",
            Stage::Upstream => "upstream",
            Stage::Relay => "relay",
        }
    }
}

/// Who ended it, or made it end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum Blame {
    Client,
    Upstream,
    Gateway,
}

impl Blame {
    /// As the log says it.
    pub const fn label(self) -> &'static str {
        match self {
            Blame::Client => "client",
            Blame::Upstream => "upstream",
            Blame::Gateway => "gateway",
        }
    }
}

/// Defines a closed list of reasons: one row each says everything there is to say.
macro_rules! reasons {
    (
        $(#[$doc:meta])* $type:ident;
        $($(#[$variant_doc:meta])* $name:ident = $label:literal, $stage:ident, $blame:ident, $status:literal;)*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[$variant_doc])* $name,)* }

        impl $type {
            /// All of them.
            pub const ALL: &'static [$type] = &[$($type::$name,)*];

            /// The word in the log and in metrics.
            pub const fn label(self) -> &'static str { match self { $($type::$name => $label,)* } }

            /// How far the connection had come.
            pub const fn stage(self) -> Stage { match self { $($type::$name => Stage::$stage,)* } }

            /// Whose doing it is.
            pub const fn blame(self) -> Blame { match self { $($type::$name => Blame::$blame,)* } }

            /// The status in the access log, in NGINX's numbers.
            pub const fn status(self) -> u16 { match self { $($type::$name => $status,)* } }
        }
    };
}

reasons! {
    /// Why a connection did not become a session.
    Reject;
    /// The address is denied by `allow` and `deny`.
    AddressDenied = "address_denied", Accept, Client, 403;
    /// The client has come, or failed, too often and is refused for a while.
    Banned = "banned", Accept, Client, 403;
    /// The listener has `max_connections` already.
    TooManyConnections = "too_many_connections", Accept, Gateway, 503;
    /// The handshake took longer than `handshake_timeout`.
    HandshakeTimeout = "handshake_timeout", Handshake, Client, 500;
    /// The client closed during the handshake.
    HandshakeClosed = "handshake_closed", Handshake, Client, 500;
    /// The bytes on a TLS port are no TLS.
    NotTls = "not_tls", Handshake, Client, 500;
    /// No TLS version in common.
    TlsVersion = "tls_version", Handshake, Client, 500;
    /// No cipher suite, group, signature scheme or application protocol in common.
    TlsParameters = "tls_parameters", Handshake, Client, 500;
    /// The client refused the gateway's certificate.
    ServerCertificateRefused = "server_certificate_refused", Handshake, Client, 500;
    /// The handshake failed in another way.
    HandshakeFailed = "handshake_failed", Handshake, Client, 500;
    /// A certificate is required and none was shown.
    NoCertificate = "no_certificate", Handshake, Client, 500;
    /// A certificate of the chain has expired.
    CertificateExpired = "certificate_expired", Handshake, Client, 500;
    /// A certificate of the chain is not valid yet.
    CertificateNotYetValid = "certificate_not_yet_valid", Handshake, Client, 500;
    /// No trust anchor in `client_ca` vouches for the certificate.
    UnknownCa = "unknown_ca", Handshake, Client, 500;
    /// The chain has more intermediates than `verify_depth`.
    CertificateChainTooLong = "certificate_chain_too_long", Handshake, Client, 500;
    /// An X.509 version 1 certificate, which has no extensions to judge it by.
    CertificateVersion = "certificate_version", Handshake, Client, 500;
    /// The certificate is not for client authentication.
    CertificatePurpose = "certificate_purpose", Handshake, Client, 500;
    /// A certificate of the chain is revoked.
    CertificateRevoked = "certificate_revoked", Handshake, Client, 500;
    /// No CRL speaks for a certificate of the chain.
    CrlMissing = "crl_missing", Handshake, Gateway, 500;
    /// The CRL that speaks for a certificate of the chain is out of date.
    CrlExpired = "crl_expired", Handshake, Gateway, 500;
    /// No OCSP responder has answered for a certificate of the chain.
    OcspMissing = "ocsp_missing", Handshake, Gateway, 500;
    /// The certificate is broken, or its signature is.
    CertificateInvalid = "certificate_invalid", Handshake, Client, 500;
    /// Nobody knows the identity of a pre-shared key.
    UnknownPsk = "unknown_psk_identity", Handshake, Client, 500;
    /// The pre-shared key is not the one of this identity.
    WrongPsk = "wrong_psk", Handshake, Client, 500;
    /// Nobody knows the raw public key.
    UnknownKey = "unknown_key", Handshake, Client, 500;
    /// CONNECT did not arrive within `connect_timeout`.
    ConnectTimeout = "connect_timeout", Connect, Client, 400;
    /// The client closed before CONNECT was whole.
    ClosedBeforeConnect = "closed_before_connect", Connect, Client, 400;
    /// The bytes on a plain port are TLS.
    TlsOnPlainPort = "tls_on_plain_port", Connect, Client, 400;
    /// The first packet is not CONNECT.
    NotConnect = "not_connect", Connect, Client, 400;
    /// CONNECT is malformed.
    MalformedConnect = "malformed_connect", Connect, Client, 400;
    /// CONNECT breaks a rule that is not one of grammar.
    ProtocolError = "protocol_error", Connect, Client, 400;
    /// CONNECT is of a version that is not MQTT 3.1, 3.1.1 or 5.
    UnsupportedVersion = "unsupported_version", Connect, Client, 400;
    /// CONNECT is larger than `max_connect_size`.
    ConnectTooLarge = "connect_too_large", Connect, Client, 400;
    /// The client identifier is empty where it may not be.
    ClientIdRejected = "client_id_rejected", Connect, Client, 400;
    /// No authenticator knows the client.
    UnknownClient = "unknown_client", Admit, Client, 403;
    /// The password is wrong, or there is none.
    BadCredentials = "bad_credentials", Admit, Client, 403;
    /// The token is none, not for this place, or its signature is wrong.
    TokenInvalid = "token_invalid", Admit, Client, 403;
    /// The token has expired.
    TokenExpired = "token_expired", Admit, Client, 403;
    /// The authentication service refuses the client.
    AuthenticationDenied = "authentication_denied", Admit, Client, 403;
    /// The device is disabled in the registry.
    DeviceDisabled = "device_disabled", Admit, Client, 403;
    /// The device is banned in the registry.
    DeviceBanned = "device_banned", Admit, Client, 403;
    /// The device is pinned to other keys than the one it has shown.
    PinMismatch = "pin_mismatch", Admit, Client, 403;
    /// Whether the client is in the registry cannot be found out.
    RegistryUnavailable = "registry_unavailable", Admit, Gateway, 503;
    /// The authentication service, or the issuer's keys, cannot be had.
    AuthenticationUnavailable = "authentication_unavailable", Admit, Gateway, 503;
    /// Too many passwords are waiting to be verified.
    AuthenticationBusy = "authentication_busy", Admit, Gateway, 503;
    /// An expression in `admit.require` is false.
    IdentityMismatch = "identity_mismatch", Admit, Client, 403;
    /// An expression has no value for this client: a field that is not there, a wrong type.
    ExpressionFailed = "expression_failed", Admit, Client, 403;
    /// What a `connect` expression yields cannot be written into CONNECT.
    RewriteFailed = "rewrite_failed", Admit, Client, 403;
    /// No server of the upstream took the connection.
    UpstreamUnreachable = "upstream_unreachable", Upstream, Upstream, 502;
    /// Every server of the upstream has its `max_connections`.
    UpstreamFull = "upstream_full", Upstream, Upstream, 503;
    /// The broker closed before it answered CONNECT.
    UpstreamClosed = "upstream_closed_early", Upstream, Upstream, 502;
    /// The broker did not answer CONNECT in time.
    UpstreamTimeout = "upstream_timeout", Upstream, Upstream, 502;
    /// The broker's answer to CONNECT is no MQTT.
    UpstreamProtocol = "upstream_protocol", Upstream, Upstream, 502;
}

reasons! {
    /// Why a session ended.
    CloseReason;
    /// The client ended it.
    Ok = "ok", Relay, Client, 200;
    /// The broker ended it.
    UpstreamClosed = "upstream_closed", Relay, Upstream, 200;
    /// The broker refused CONNECT; the client got the broker's own answer.
    UpstreamRefused = "upstream_refused", Upstream, Upstream, 403;
    /// The connection to the client broke.
    ClientLost = "client_lost", Relay, Client, 200;
    /// The connection to the broker broke.
    UpstreamLost = "upstream_lost", Relay, Upstream, 502;
    /// One side had ended, the other did not within the time for it.
    HalfCloseTimeout = "half_close_timeout", Relay, Client, 200;
    /// The gateway ended its work.
    Drained = "drained", Relay, Gateway, 200;
    /// A certificate of the client's chain was revoked.
    CertificateRevoked = "session_revoked", Relay, Gateway, 403;
    /// A certificate of the client's chain expired.
    CertificateExpired = "session_expired", Relay, Gateway, 403;
    /// The trust anchor of the client's chain is no longer in `client_ca`, or its listener asks for none.
    CaRemoved = "session_ca_removed", Relay, Gateway, 403;
    /// What the client has proved itself with was removed or changed: a password, a pre-shared key, a raw public key, a
    /// pin, or the authenticator as a whole.
    CredentialWithdrawn = "session_credential_withdrawn", Relay, Gateway, 403;
    /// The client's token, or the answer of the authentication service, expired.
    TokenExpired = "session_token_expired", Relay, Gateway, 403;
    /// The device was disabled in the registry.
    DeviceDisabled = "session_device_disabled", Relay, Gateway, 403;
    /// The device was banned in the registry.
    DeviceBanned = "session_device_banned", Relay, Gateway, 403;
    /// The device was removed from the registry.
    DeviceRemoved = "session_device_removed", Relay, Gateway, 403;
    /// What the registry knows of the device was changed, and had decided about it.
    DeviceChanged = "session_device_changed", Relay, Gateway, 403;
    /// The client's address is no longer allowed.
    AddressDenied = "session_address_denied", Relay, Gateway, 403;
    /// A fault of the gateway itself.
    InternalError = "internal_error", Relay, Gateway, 500;
}

impl Reject {
    /// What the client is told in its CONNACK; `None` where no CONNECT was understood, so that there is nothing to
    /// answer.
    pub const fn refusal(self) -> Option<Refusal> {
        Some(match self {
            Reject::AddressDenied
            | Reject::TooManyConnections
            | Reject::UnknownPsk
            | Reject::WrongPsk
            | Reject::UnknownKey
            | Reject::HandshakeTimeout
            | Reject::HandshakeClosed
            | Reject::NotTls
            | Reject::TlsVersion
            | Reject::TlsParameters
            | Reject::ServerCertificateRefused
            | Reject::HandshakeFailed
            | Reject::NoCertificate
            | Reject::CertificateExpired
            | Reject::CertificateNotYetValid
            | Reject::UnknownCa
            | Reject::CertificateChainTooLong
            | Reject::CertificateVersion
            | Reject::CertificatePurpose
            | Reject::CertificateInvalid
            | Reject::ConnectTimeout
            | Reject::ClosedBeforeConnect
            | Reject::TlsOnPlainPort
            | Reject::NotConnect => return None,
            Reject::MalformedConnect => Refusal::Malformed,
            Reject::ProtocolError => Refusal::ProtocolError,
            Reject::UnsupportedVersion => Refusal::UnsupportedVersion,
            Reject::ConnectTooLarge => Refusal::PacketTooLarge,
            Reject::ClientIdRejected => Refusal::ClientId,
            // One answer for all of them: whether there is such a user or device is the operator's to know.
            Reject::UnknownClient
            | Reject::BadCredentials
            | Reject::TokenInvalid
            | Reject::TokenExpired
            | Reject::AuthenticationDenied
            | Reject::DeviceDisabled
            | Reject::DeviceBanned
            | Reject::PinMismatch => Refusal::BadCredentials,
            // Likewise which rule refused.
            Reject::IdentityMismatch
            | Reject::ExpressionFailed
            | Reject::RewriteFailed
            | Reject::Banned
            // Found out after the handshake.
            | Reject::CertificateRevoked
            | Reject::CrlMissing
            | Reject::CrlExpired
            | Reject::OcspMissing => Refusal::NotAuthorized,
            Reject::RegistryUnavailable
            | Reject::AuthenticationUnavailable
            | Reject::AuthenticationBusy
            | Reject::UpstreamUnreachable
            | Reject::UpstreamFull
            | Reject::UpstreamClosed
            | Reject::UpstreamTimeout
            | Reject::UpstreamProtocol => Refusal::ServerUnavailable,
        })
    }

    /// Whether the client has failed to prove who it is: what bans count.
    pub const fn is_failed_proof(self) -> bool {
        match self {
            Reject::NoCertificate
            | Reject::CertificateExpired
            | Reject::CertificateNotYetValid
            | Reject::UnknownCa
            | Reject::CertificateChainTooLong
            | Reject::CertificateVersion
            | Reject::CertificatePurpose
            | Reject::CertificateRevoked
            | Reject::CertificateInvalid
            | Reject::UnknownPsk
            | Reject::WrongPsk
            | Reject::UnknownKey
            | Reject::UnknownClient
            | Reject::BadCredentials
            | Reject::TokenInvalid
            | Reject::TokenExpired
            | Reject::AuthenticationDenied
            | Reject::DeviceDisabled
            | Reject::DeviceBanned
            | Reject::PinMismatch
            | Reject::IdentityMismatch
            | Reject::ExpressionFailed => true,
            Reject::AddressDenied
            | Reject::Banned
            | Reject::TooManyConnections
            | Reject::HandshakeTimeout
            | Reject::HandshakeClosed
            | Reject::NotTls
            | Reject::TlsVersion
            | Reject::TlsParameters
            | Reject::ServerCertificateRefused
            | Reject::HandshakeFailed
            | Reject::CrlMissing
            | Reject::CrlExpired
            | Reject::OcspMissing
            | Reject::ConnectTimeout
            | Reject::ClosedBeforeConnect
            | Reject::TlsOnPlainPort
            | Reject::NotConnect
            | Reject::MalformedConnect
            | Reject::ProtocolError
            | Reject::UnsupportedVersion
            | Reject::ConnectTooLarge
            | Reject::ClientIdRejected
            | Reject::RegistryUnavailable
            | Reject::AuthenticationUnavailable
            | Reject::AuthenticationBusy
            | Reject::RewriteFailed
            | Reject::UpstreamUnreachable
            | Reject::UpstreamFull
            | Reject::UpstreamClosed
            | Reject::UpstreamTimeout
            | Reject::UpstreamProtocol => false,
        }
    }

    /// What to do about it, where the word alone would leave an operator looking.
    pub const fn hint(self) -> Option<&'static str> {
        Some(match self {
            Reject::CertificateVersion => {
                "the device's certificate is X.509 version 1, as `openssl x509 -req` makes it without extensions; issue \
                 it again with `-extfile`, or with `portcullis pki sign`"
            }
            Reject::CertificateChainTooLong => "raise `verify_depth`, or let the device send a shorter chain",
            Reject::CertificatePurpose => "the certificate's extended key usage lacks clientAuth",
            Reject::UnknownCa => {
                "`client_ca` has no anchor for this chain; a device has to send its intermediates along"
            }
            Reject::CrlMissing => {
                "with `crl` set, each authority in a device's chain needs a CRL, the root too: `openssl crl -text` says \
                 whose a list is; or `crl_missing = \"allow\"`"
            }
            Reject::OcspMissing => {
                "the gateway's own log says what the responder answered; or `ocsp_failure = \"allow\"`"
            }
            Reject::RegistryUnavailable => {
                "the registry's database cannot be reached, or has not been read yet; devices that were known go on"
            }
            Reject::CrlExpired => "the CRL's nextUpdate has passed: publish a new one",
            Reject::TlsOnPlainPort => "this listener has `protocol = \"tcp\"`",
            Reject::NotTls => "the client speaks without TLS on a listener with `protocol = \"tls\"`",
            Reject::ExpressionFailed => "test fields a client may leave out with has()",
            _ => return None,
        })
    }
}

impl CloseReason {
    /// What a client that speaks MQTT 5 is told when the gateway ends its session [MQTT-3.14.2-1].
    pub const fn goodbye(self) -> Disconnect {
        match self {
            CloseReason::CertificateRevoked
            | CloseReason::CaRemoved
            | CloseReason::AddressDenied
            | CloseReason::CredentialWithdrawn
            | CloseReason::DeviceDisabled
            | CloseReason::DeviceBanned
            | CloseReason::DeviceRemoved
            | CloseReason::DeviceChanged => Disconnect::NotAuthorized,
            CloseReason::CertificateExpired | CloseReason::TokenExpired => Disconnect::MaximumConnectTime,
            CloseReason::Ok
            | CloseReason::UpstreamClosed
            | CloseReason::UpstreamRefused
            | CloseReason::ClientLost
            | CloseReason::UpstreamLost
            | CloseReason::HalfCloseTimeout
            | CloseReason::Drained
            | CloseReason::InternalError => Disconnect::ServerShuttingDown,
        }
    }
}

impl From<WireError> for Reject {
    /// The refusal for a CONNECT that cannot be read.
    fn from(error: WireError) -> Self {
        match error {
            WireError::TooLarge => Reject::ConnectTooLarge,
            WireError::Unsupported => Reject::UnsupportedVersion,
            WireError::Malformed(Rule::FirstPacketNotConnect | Rule::PacketTypeReserved) => Reject::NotConnect,
            WireError::Malformed(Rule::ClientIdRequired) => Reject::ClientIdRejected,
            WireError::Malformed(rule) if rule.is_protocol_error() => Reject::ProtocolError,
            WireError::Malformed(_) => Reject::MalformedConnect,
        }
    }
}

/// How a connection ended: before it was a session, or as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It did not become a session.
    Rejected(Reject),
    /// It was one.
    Closed(CloseReason),
}

impl From<Reject> for Outcome {
    fn from(reject: Reject) -> Self {
        Outcome::Rejected(reject)
    }
}

macro_rules! either {
    ($($(#[$doc:meta])* $name:ident -> $type:ty;)*) => {
        impl Outcome {
            $($(#[$doc])* pub const fn $name(self) -> $type {
                match self {
                    Outcome::Rejected(reject) => reject.$name(),
                    Outcome::Closed(reason) => reason.$name(),
                }
            })*
        }
    };
}

either! {
    /// The word in the log and in metrics.
    label -> &'static str;
    /// How far the connection had come.
    stage -> Stage;
    /// Whose doing it is.
    blame -> Blame;
    /// The status in the access log.
    status -> u16;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_one_lower_case_word_each_and_documented() {
        let documented = include_str!("../../../docs/access-log.md");
        let rejects = Reject::ALL.iter().map(|reject| Outcome::Rejected(*reject));
        let mut seen = std::collections::HashSet::new();
        for outcome in rejects.chain(CloseReason::ALL.iter().map(|reason| Outcome::Closed(*reason))) {
            let label = outcome.label();
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{label}");
            assert!(seen.insert(label), "{label} twice");
            let row = format!(
                "| `{label}` | {} | {} | {} |",
                outcome.status(),
                outcome.stage().label(),
                outcome.blame().label()
            );
            assert!(documented.contains(&row), "docs/access-log.md lacks: {row}");
        }
    }
}
