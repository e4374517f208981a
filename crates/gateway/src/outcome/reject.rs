//! The reasons for which connections do not become sessions.

use portcullis_wire::{Error as WireError, Refusal, Rule};

super::reasons! {
    /// Why a connection did not become a session.
    Reject {
        /// The code that the client receives in CONNACK. `None`: no CONNECT was decoded, so that none is sent.
        connack: Option<Refusal>,
        /// Whether the client failed to authenticate itself. Bans count these failures.
        is_failed_proof: bool,
        /// What an operator can do. Shown in the log.
        hint: Option<&'static str>,
    }

    /// `allow` and `deny` do not admit the client's address.
    AddressDenied = "address_denied", Accept, Client, 403,
        connack: None, is_failed_proof: false,
        hint: Some("if the client is yours, add its network to `allow` or remove it from `deny`");
    /// A peer that is not in `from` of the listener's `proxy_protocol` connected without a load balancer, where one is required, or
    /// sent a header of the PROXY protocol.
    ProxyHeaderUntrusted = "proxy_header_untrusted", Accept, Client, 403,
        connack: None, is_failed_proof: false,
        hint: Some("if it is your load balancer, add its network to `from`; clients that connect without it need `required = false`");
    /// A load balancer sent no header of the PROXY protocol: other bytes, or none within `handshake_timeout`, without TLS
    /// `connect_timeout`.
    ProxyHeaderMissing = "proxy_header_missing", Accept, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("turn it on in the load balancer: `proxy_protocol on` in NGINX, `send-proxy-v2` in HAProxy; its health checks also cause this");
    /// The header of the PROXY protocol is malformed, not complete, or larger than 1,024 bytes.
    ProxyHeaderInvalid = "proxy_header_invalid", Accept, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("see `detail` for what is wrong with it, and compare with the load balancer's documentation");
    /// The client connected or failed more often than a `[[listener.ban]]` allows.
    Banned = "banned", Accept, Client, 403,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: false,
        hint: Some("find the client's earlier lines; `except` exempts a network from a ban");
    /// The listener already has `max_connections` connections.
    TooManyConnections = "too_many_connections", Accept, Gateway, 503,
        connack: None, is_failed_proof: false,
        hint: Some("raise `max_connections`, or add a gateway");

    /// The client's network has 32 connections or more that are not established yet, and they are more than half of those
    /// that are free.
    TooManyPending = "too_many_pending", Accept, Client, 503,
        connack: None, is_failed_proof: false,
        hint: Some("behind a load balancer all clients are of one network: raise `max_connections` and the limit of open files");

    /// Handshakes and CONNECTs of the client's network that are not finished need more than half of what is free of 128 MiB, those
    /// up to 16 KiB not counted; of that, clients whose address had no session lately can have 64 MiB.
    TooManyPendingBytes = "too_many_pending_bytes", Connect, Client, 503,
        connack: Some(Refusal::QuotaExceeded), is_failed_proof: false,
        hint: Some("see the address of these lines, and what its clients send: long chains of certificates, wills, passwords; devices of yours should come back after a random time");

    /// The client's address has as many connections as `connections_per_address` allows, or connects more often than
    /// `connect_rate_per_address` does; or more clients connect than `connect_rate` allows within `handshake_timeout`.
    QuotaExceeded = "quota_exceeded", Accept, Client, 503,
        connack: Some(Refusal::QuotaExceeded), is_failed_proof: false,
        hint: Some("compare `detail` with [listener.limits]; behind a load balancer all clients have one address");

    /// More handshakes than `max_handshakes` were in progress, and so many others waited that this one had no turn within
    /// `handshake_timeout`, or did not fit into `handshake_queue`.
    TooManyHandshakes = "too_many_handshakes", Handshake, Gateway, 503,
        connack: None, is_failed_proof: false,
        hint: Some("after an outage of the network the fleet comes back within minutes; if it lasts, raise `handshake_queue`, or add cores or gateways");

    /// The gateway has more memory than `memory_limit`, or has had it and is not below nine tenths of it yet.
    MemoryLimit = "memory_limit", Accept, Gateway, 503,
        connack: None, is_failed_proof: false,
        hint: Some("raise `memory_limit` of [runtime], or add a gateway; sessions that are connected stay");

    /// The limit of open files leaves no descriptors for another connection.
    TooFewDescriptors = "too_few_descriptors", Accept, Gateway, 503,
        connack: None, is_failed_proof: false,
        hint: Some(crate::outcome::RAISE_OPEN_FILES);

    /// The TLS handshake did not finish within `handshake_timeout`.
    HandshakeTimeout = "handshake_timeout", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("if devices need longer, raise `handshake_timeout`; port scanners also cause this");
    /// The client closed the connection during the TLS handshake.
    HandshakeClosed = "handshake_closed", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("see the device's log; health checks and port scanners also cause this");
    /// The client sent something other than TLS to a listener with `protocol = "tls"`.
    NotTls = "not_tls", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("turn on TLS in the client, or use a listener with `protocol = \"tcp\"`; load balancers that send the PROXY protocol need `proxy_protocol`");
    /// The client and the listener share no TLS version.
    TlsVersion = "tls_version", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("the client needs TLS 1.2 or 1.3; compare `versions`");
    /// The client and the listener share no cipher suite, key exchange group, signature scheme or ALPN protocol.
    TlsParameters = "tls_parameters", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("update the client's TLS library; if it offers ALPN protocols, compare `alpn`");
    /// The client requested a server name (SNI) that is not a host name, such as one with a port or an underscore at
    /// its end.
    InvalidServerName = "invalid_server_name", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("set the client to the gateway's host name alone, without a port or brackets");
    /// The client rejected the gateway's certificate.
    ServerCertificateRefused = "server_certificate_refused", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("check that the client has the CA of `certificate`, and that it is valid for the host name in use");
    /// The TLS handshake failed for another reason.
    HandshakeFailed = "handshake_failed", Handshake, Client, 500,
        connack: None, is_failed_proof: false,
        hint: Some("see `detail` for the TLS library's error");
    /// The listener requires a client certificate and the client sent none.
    NoCertificate = "no_certificate", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("configure a certificate in the client, or set `client_auth = \"optional\"`");
    /// A certificate in the client's chain has expired.
    CertificateExpired = "certificate_expired", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("renew the device's certificate");
    /// A certificate in the client's chain is not valid yet.
    CertificateNotYetValid = "certificate_not_yet_valid", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("check the clocks of the gateway and of the CA");
    /// No CA in `client_ca` issued the client's chain.
    UnknownCa = "unknown_ca", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("add the root to `client_ca`; the device has to send its intermediate certificates");
    /// The client's chain has more intermediates than `verify_depth` or one of its CAs allows, or exceeds 16 KiB.
    CertificateChainTooLong = "certificate_chain_too_long", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("raise `verify_depth`, or let the device send a shorter chain");
    /// The client's certificate is X.509 version 1, which has no extensions.
    CertificateVersion = "certificate_version", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("`openssl x509 -req` makes version 1 without `-extfile`; issue the certificate again \
             with it, or with `portcullis pki sign`");
    /// The client's certificate is not for client authentication.
    CertificatePurpose = "certificate_purpose", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("issue the certificate with the extended key usage clientAuth and the key usage digitalSignature");
    /// A certificate in the client's chain is revoked.
    CertificateRevoked = "certificate_revoked", Handshake, Client, 500,
        // Revocation has a CONNACK code, because OCSP and named CRLs are checked after the handshake.
        connack: Some(Refusal::NotAuthorized), is_failed_proof: true,
        hint: Some("to trust the device again, issue it a new certificate");
    /// No CRL covers a certificate in the client's chain.
    CrlMissing = "crl_missing", Handshake, Gateway, 500,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: false,
        hint: Some("`crl` needs a CRL of every CA in the chain, the root included; `openssl crl -text` shows the \
             issuer of one; `crl_missing = \"allow\"` admits such devices");
    /// The CRL that covers a certificate in the client's chain is out of date.
    CrlExpired = "crl_expired", Handshake, Gateway, 500,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: false,
        hint: Some("publish a new CRL: the nextUpdate of this one has passed");
    /// No OCSP responder gave a usable response about a certificate in the client's chain.
    OcspMissing = "ocsp_missing", Handshake, Gateway, 500,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: false,
        hint: Some("see the gateway's log for the responder's error; set `ocsp_responder` if certificates name none");
    /// A certificate in the client's chain that issued another one is not that of a CA: its basicConstraints or
    /// keyUsage does not allow it to sign certificates.
    CertificateNotCa = "certificate_not_ca", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("issue the CA's certificate again with CA:TRUE and keyCertSign");
    /// The client's certificate has a name that its CA's name constraints do not allow.
    CertificateName = "certificate_name", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("issue the certificate with names that the CA may certify, or use another CA");
    /// The client's certificate is malformed, has an invalid signature, or violates another rule of X.509.
    CertificateInvalid = "certificate_invalid", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("see `detail` for what is wrong with it");
    /// No pre-shared key has the client's identity. Clients cannot tell this from `wrong_psk`.
    UnknownPsk = "unknown_psk_identity", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("add the identity to the listener's key file or to the registry");
    /// The client's pre-shared key does not match its identity.
    WrongPsk = "wrong_psk", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("compare the device's key with the gateway's; `format` sets how the key file is read");
    /// The client's raw public key is not known, or the client presented none.
    UnknownKey = "unknown_key", Handshake, Client, 500,
        connack: None, is_failed_proof: true,
        hint: Some("add the key to the listener's key file, or pin it to a device in the registry");

    /// The client did not upgrade its connection to WebSocket: another request or none within `connect_timeout`, another path, or
    /// no subprotocol of MQTT where one is required. It is answered with 400, 404 or 426.
    WebSocketUpgradeFailed = "websocket_upgrade_failed", Handshake, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("compare `detail` with [listener.websocket]; the path in the client's URL has to be `path`");
    /// A page of an origin that may not connect: it is not in `origins`, or not that of the gateway where certificates or cookies
    /// authenticate. It is answered with 403.
    OriginDenied = "origin_denied", Handshake, Client, 403,
        connack: None, is_failed_proof: false,
        hint: Some("if the page is yours, add its origin to `origins` of [listener.websocket]");
    /// A frame violates the protocol of WebSocket, or is a text frame.
    WebSocketProtocol = "websocket_protocol", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("update the client's WebSocket library; `detail` says what it did");
    /// The client violates the protocol of QUIC, or opens more than one stream.
    QuicProtocol = "quic_protocol", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("update the client's QUIC library; `detail` says what it did");
    /// The client opened no bidirectional stream within `connect_timeout`, which is where MQTT is spoken over QUIC.
    QuicStreamMissing = "quic_stream_missing", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("use a client that speaks MQTT on the first bidirectional stream that it opens, as those of EMQX do");
    /// CONNECT did not arrive within `connect_timeout`.
    ConnectTimeout = "connect_timeout", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("if devices need longer, raise `connect_timeout`; port scanners also cause this");
    /// The client closed the connection before CONNECT was complete.
    ClosedBeforeConnect = "closed_before_connect", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("see the device's log; health checks and port scanners also cause this");
    /// The client sent TLS to a listener with `protocol = "tcp"`.
    TlsOnPlainPort = "tls_on_plain_port", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("turn off TLS in the client, or use a listener with `protocol = \"tls\"`");
    /// The client's first packet is not CONNECT.
    NotConnect = "not_connect", Connect, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("find out which client connects to this port: it does not speak MQTT");
    /// CONNECT is malformed.
    MalformedConnect = "malformed_connect", Connect, Client, 400,
        connack: Some(Refusal::Malformed), is_failed_proof: false,
        hint: Some("update the client's MQTT library");
    /// CONNECT is well-formed, but violates another rule of the protocol.
    ProtocolError = "protocol_error", Connect, Client, 400,
        connack: Some(Refusal::ProtocolError), is_failed_proof: false,
        hint: Some("update the client's MQTT library");
    /// The client's protocol version is not MQTT 3.1, 3.1.1 or 5.
    UnsupportedVersion = "unsupported_version", Connect, Client, 400,
        connack: Some(Refusal::UnsupportedVersion), is_failed_proof: false,
        hint: Some("set the client to MQTT 3.1.1 or 5");
    /// CONNECT is larger than `max_connect_size`.
    ConnectTooLarge = "connect_too_large", Connect, Client, 400,
        connack: Some(Refusal::PacketTooLarge), is_failed_proof: false,
        hint: Some("raise `max_connect_size`, or shorten the client's will, password or properties");
    /// The client ID is empty where it must not be.
    ClientIdRejected = "client_id_rejected", Connect, Client, 400,
        connack: Some(Refusal::ClientId), is_failed_proof: false,
        hint: Some("set a client ID; before MQTT 5, only a clean session may omit it");
    /// The client ID is longer than `max_client_id`.
    ClientIdTooLong = "client_id_too_long", Connect, Client, 400,
        connack: Some(Refusal::ClientId), is_failed_proof: false,
        hint: Some("raise `max_client_id`, or shorten the client ID");
    /// The user name is longer than `max_username`.
    UsernameTooLong = "username_too_long", Connect, Client, 400,
        connack: Some(Refusal::BadCredentials), is_failed_proof: false,
        hint: Some("raise `max_username`, or shorten the user name");

    // All failures to authenticate have the same code: clients must not learn whether a user or device exists.
    /// No authenticator knows the client.
    UnknownClient = "unknown_client", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("check the client's user name, and that `authenticate` lists the authenticator that knows it");
    /// The password is wrong or missing. Clients cannot tell this from `unknown_client`, nor from the reasons that
    /// follow, up to `pin_mismatch`.
    BadCredentials = "bad_credentials", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("check the password in the client");
    /// The token's signature or audience is invalid, or the token is not valid yet. A password that does not look like
    /// a token is `unknown_client`.
    TokenInvalid = "token_invalid", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("compare the token's alg, kid, aud and nbf with `algorithms`, `jwks`, `audience` and the clock");
    /// The token has expired.
    TokenExpired = "token_expired", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("let the device get a new token; check the clocks of the gateway and of the issuer");
    /// The authentication service denied the client.
    AuthenticationDenied = "authentication_denied", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("see the service's log for the cause");
    /// The device is disabled in the registry.
    DeviceDisabled = "device_disabled", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("`portcullis device enable` admits it again");
    /// The device is banned in the registry.
    DeviceBanned = "device_banned", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("`portcullis device enable` admits it before the ban ends");
    /// The device presented another certificate or key than those it is pinned to.
    PinMismatch = "pin_mismatch", Admit, Client, 403,
        connack: Some(Refusal::BadCredentials), is_failed_proof: true,
        hint: Some("if the device got a new key, pin it with `portcullis device pin`");
    /// The credential is not the one that the gateway knows of the device, and the registry cannot be read: it may have
    /// changed.
    CredentialUnconfirmed = "credential_unconfirmed", Admit, Client, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: true,
        hint: Some("check the registry's database; then compare the device's password or key");
    /// The client is not among the devices that the gateway knows, and the registry cannot be read.
    RegistryUnavailable = "registry_unavailable", Admit, Gateway, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("check the registry's database and `max_devices`; devices that the gateway knows are admitted");
    /// The authentication service did not answer, or the keys that verify tokens could not be fetched.
    AuthenticationUnavailable = "authentication_unavailable", Admit, Gateway, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("check that the gateway can reach the authenticator's `url` or `jwks`, and that the service has capacity");
    /// The authentication service answered the request about this client with an error.
    AuthenticationError = "authentication_error", Admit, Gateway, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: true,
        hint: Some("see the service's log for the cause, and `detail` for what is wrong with the response");
    /// Too many passwords wait to be verified, or too many requests wait for the authentication service.
    AuthenticationBusy = "authentication_busy", Admit, Gateway, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("raise `cache` or `max_concurrency`, or add CPUs; clients that reconnect too often also cause this");
    // Clients must not learn which rule rejected them.
    /// An expression in `admit.require` is false.
    IdentityMismatch = "identity_mismatch", Admit, Client, 403,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: true,
        hint: Some("compare `require` with the client's certificate and CONNECT");
    /// An expression has no value for this client, because a field is missing or has another type.
    ExpressionFailed = "expression_failed", Admit, Client, 403,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: true,
        hint: Some("use has() to test fields that a client may omit");
    /// The value of a `connect` expression cannot be written into CONNECT.
    RewriteFailed = "rewrite_failed", Admit, Client, 403,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: false,
        hint: Some("it may exceed 65,535 bytes or contain U+0000; before MQTT 5, a password needs a user name");

    /// The topic policy denies the client's will. The client is told why with 0x87, 0x90, 0x95, 0x99, 0x9A or 0x9B.
    TopicDenied = "topic_denied", Admit, Client, 403,
        connack: Some(Refusal::NotAuthorized), is_failed_proof: false,
        hint: Some("compare the will in `detail` with the rules of the listener's `topics`");

    /// No server of the upstream accepted the connection.
    UpstreamUnreachable = "upstream_unreachable", Upstream, Upstream, 502,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("check that the brokers run, and that the gateway can reach the addresses in `servers`");
    /// The gateway lacks file descriptors, memory or local ports to connect to a broker.
    GatewayExhausted = "gateway_exhausted", Upstream, Gateway, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("see the gateway's log; raise the limit of open files, or widen `net.ipv4.ip_local_port_range`");
    /// Every server of the upstream already has its `max_connections`, or gets so many CONNECTs that this one had no turn within
    /// `connect_timeout` at its `max_connect_rate`.
    UpstreamFull = "upstream_full", Upstream, Upstream, 503,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("raise the servers' `max_connections`, `max_connect_rate` or `connect_timeout`, or add a server");
    /// The client closed the connection while it waited for its turn: for its password to be verified, for a request to the
    /// authentication service, or at `max_connect_rate`. No broker has got its CONNECT.
    ClientLeft = "client_left", Upstream, Client, 400,
        connack: None, is_failed_proof: false,
        hint: Some("let clients wait longer for CONNACK; raise `max_concurrency` of the authenticator or `max_connect_rate`");
    /// The broker closed the connection before it answered CONNECT.
    UpstreamClosed = "upstream_closed_early", Upstream, Upstream, 502,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("see the broker's log for the cause; brokers also close where one side expects the PROXY protocol and the other does not: compare `proxy_protocol` of [[upstream]]");
    /// The broker did not answer CONNECT in time.
    UpstreamTimeout = "upstream_timeout", Upstream, Upstream, 502,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("check the broker's load, and that its port speaks MQTT");
    /// The broker's response to CONNECT is not MQTT.
    UpstreamProtocol = "upstream_protocol", Upstream, Upstream, 502,
        connack: Some(Refusal::ServerUnavailable), is_failed_proof: false,
        hint: Some("check the ports in `servers`, and whether they need `tls`");
}

impl From<WireError> for Reject {
    /// The reason for rejecting a CONNECT that cannot be decoded.
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

impl Reject {
    /// Whether the gateway has no room for the client at present, or for those of its network: it may be let in later.
    pub(crate) const fn is_overload(self) -> bool {
        matches!(
            self,
            Self::TooManyConnections
                | Self::TooManyPending
                | Self::TooManyPendingBytes
                | Self::TooManyHandshakes
                | Self::MemoryLimit
                | Self::AuthenticationBusy
                | Self::UpstreamFull
        )
    }
}
