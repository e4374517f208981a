//! The reasons for which sessions close.

use portcullis_wire::Disconnect;

super::reasons! {
    /// Why a session closed.
    CloseReason {
        /// The DISCONNECT that the gateway sends to MQTT 5 clients [MQTT-3.14.2-1]. `None`: it sends none, because it did
        /// not decide to close the session.
        disconnect: Option<Disconnect>,
        /// Whether another listener may judge differently: a session whose listener was removed continues if one does.
        is_of_listener: bool,
        /// What an operator can do. Shown in the log.
        hint: Option<&'static str>,
    }

    /// The client ended the session.
    Ok = "ok", Relay, Client, 200,
        disconnect: None, is_of_listener: false,
        hint: None;
    /// The broker ended the session with a DISCONNECT, which the client received.
    UpstreamDisconnected = "upstream_disconnected", Relay, Upstream, 200,
        disconnect: None, is_of_listener: false,
        hint: Some("see the broker's log for the cause");
    /// The broker closed the connection without a DISCONNECT, before the client had sent one. MQTT 3 brokers do so, too,
    /// when the client connects again under its ID, or is silent for too long.
    UpstreamClosed = "upstream_closed", Relay, Upstream, 502,
        disconnect: None, is_of_listener: false,
        hint: Some("see the broker's log for the cause; it may have stopped");
    /// The broker rejected CONNECT. The client received the broker's CONNACK.
    UpstreamRefused = "upstream_refused", Upstream, Upstream, 403,
        disconnect: None, is_of_listener: false,
        hint: Some("see the broker's log for the cause");
    /// The connection to the client broke.
    ClientLost = "client_lost", Relay, Client, 200,
        disconnect: None, is_of_listener: false,
        hint: Some("if it happens often, compare the client's keep-alive with the idle timeouts of firewalls on the path");
    /// The connection to the broker broke.
    UpstreamLost = "upstream_lost", Relay, Upstream, 502,
        disconnect: None, is_of_listener: false,
        hint: Some("check the broker and the network between it and the gateway");
    /// One side stopped sending and the other did not finish in time.
    HalfCloseTimeout = "half_close_timeout", Relay, Client, 200,
        disconnect: None, is_of_listener: false,
        hint: None;
    /// The gateway shuts down, or another process serves in its place. MQTT 5 clients are told what `drain_reason` says.
    Drained = "drained", Relay, Gateway, 200,
        disconnect: Some(Disconnect::ServerShuttingDown), is_of_listener: false,
        hint: None;
    /// The configuration takes the session's broker out of service: `drain = true`.
    ServerDrained = "server_drained", Relay, Gateway, 200,
        disconnect: Some(Disconnect::ServerShuttingDown), is_of_listener: false,
        hint: None;
    /// A certificate in the client's chain was revoked during the session.
    CertificateRevoked = "session_revoked", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: false,
        hint: Some("to trust the device again, issue it a new certificate");
    /// A certificate in the client's chain expired during the session.
    CertificateExpired = "session_expired", Relay, Gateway, 403,
        disconnect: Some(Disconnect::MaximumConnectTime), is_of_listener: false,
        hint: Some("let devices renew their certificates, and reconnect, before they expire");
    /// `client_ca` or `verify_depth` no longer allows the client's chain, or the listener asks for no certificate.
    CaRemoved = "session_ca_removed", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: Some("keep a CA in `client_ca` until no device uses it");
    /// The credential that the client used was removed or changed: a password, a pre-shared key, a raw public key, a
    /// pin, the key that verified its token, or the authenticator as a whole.
    CredentialWithdrawn = "session_credential_withdrawn", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: None;
    /// The client's token, or the authentication service's response about it, expired during the session.
    TokenExpired = "session_token_expired", Relay, Gateway, 403,
        disconnect: Some(Disconnect::MaximumConnectTime), is_of_listener: false,
        hint: Some("let the device reconnect with a new token before the old one expires");
    /// The device was disabled in the registry during the session.
    DeviceDisabled = "session_device_disabled", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: false,
        hint: None;
    /// The device was banned in the registry during the session.
    DeviceBanned = "session_device_banned", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: false,
        hint: None;
    /// The device was removed from the registry during the session.
    DeviceRemoved = "session_device_removed", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: false,
        hint: None;
    /// The device's groups or attributes were changed in the registry, and expressions of its listener use them.
    DeviceChanged = "session_device_changed", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: false,
        hint: Some("the device may reconnect at once and is evaluated by its new groups and attributes");
    /// `allow` and `deny` no longer admit the client's address.
    AddressDenied = "session_address_denied", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: None;
    /// The load balancer that named the client's address is no longer in `from` of the listener's `proxy_protocol`, or the HTTP
    /// proxy in `trusted_proxies`; or the client is connected without one where the listener now requires it.
    BalancerUntrusted = "session_balancer_untrusted", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: Some("keep the network of a load balancer in `from` or `trusted_proxies` until it has no sessions");
    /// `origins` of [listener.websocket] no longer has the origin of the page that the client is.
    OriginDenied = "session_origin_denied", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: None;
    /// A packet of the client violates the protocol, or a limit that the broker's CONNACK sets. `detail` has the clause of the
    /// standard. The broker receives nothing of the packet.
    ProtocolViolation = "protocol_violation", Relay, Client, 400,
        disconnect: Some(Disconnect::ProtocolError), is_of_listener: false,
        hint: Some("update the client's MQTT library; `detail` says what it did");
    /// A frame of the client violates the protocol of WebSocket, or is a text frame.
    WebSocketProtocol = "websocket_protocol", Relay, Client, 400,
        disconnect: None, is_of_listener: false,
        hint: Some("update the client's WebSocket library; `detail` says what it did");
    /// The client violates the protocol of QUIC, or opens more than one stream.
    QuicProtocol = "quic_protocol", Relay, Client, 400,
        disconnect: None, is_of_listener: false,
        hint: Some("update the client's QUIC library; `detail` says what it did");
    /// Nothing has arrived on a QUIC connection for `idle_timeout`.
    QuicIdleTimeout = "quic_idle_timeout", Relay, Client, 200,
        disconnect: None, is_of_listener: false,
        hint: Some("the client has lost its network, or hangs");
    /// A topic policy denies what the client publishes, or its will.
    TopicDenied = "topic_denied", Relay, Client, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: Some("compare the topic in `detail` with the rules of the listener's `topics`");
    /// A reload changed what the client may do: it has a subscription that is no longer allowed, another topic space, or its
    /// packets were not inspected before.
    SessionPolicyChanged = "session_policy_changed", Relay, Gateway, 403,
        disconnect: Some(Disconnect::NotAuthorized), is_of_listener: true,
        hint: Some("the client may reconnect at once, and subscribe to what is allowed");
    /// A packet of the client is larger than `max_packet_size` or the broker's maximum, or its head than 256 KiB; or CONNACK is
    /// larger than the client accepts.
    PacketTooLarge = "packet_too_large", Relay, Client, 400,
        disconnect: Some(Disconnect::PacketTooLarge), is_of_listener: false,
        hint: Some("let the client send smaller packets, or raise `max_packet_size`");
    /// The client exceeds a rate with `on_exceed = "disconnect"`, or another limit of the gateway.
    QuotaExceeded = "quota_exceeded", Relay, Client, 503,
        disconnect: Some(Disconnect::QuotaExceeded), is_of_listener: false,
        hint: Some("compare `detail` with [listener.limits]");
    /// The client was silent for one and a half times its keep-alive interval.
    KeepAliveTimeout = "keep_alive_timeout", Relay, Client, 200,
        disconnect: Some(Disconnect::KeepAliveTimeout), is_of_listener: false,
        hint: Some("the client has lost its network, or hangs");
    /// The session has lasted for `max_session_lifetime`.
    SessionLifetime = "session_lifetime", Relay, Gateway, 200,
        disconnect: Some(Disconnect::MaximumConnectTime), is_of_listener: true,
        hint: None;
    /// The broker violated the protocol in a way that the gateway cannot pass on.
    UpstreamViolation = "upstream_violation", Relay, Upstream, 502,
        disconnect: Some(Disconnect::ImplementationSpecific), is_of_listener: false,
        hint: Some("update the broker; `detail` says what it sent");
    /// A fault in the gateway ended the session.
    InternalError = "internal_error", Relay, Gateway, 500,
        disconnect: None, is_of_listener: false,
        hint: Some("this is a bug: report it with the gateway's log");
}

impl CloseReason {
    /// Whether the client may do nothing more, as opposed to a session that ends for reasons of the gateway's own.
    pub(crate) const fn stops_client(self) -> bool {
        !matches!(self, Self::Drained | Self::ServerDrained)
    }

    /// Whether the broker must not publish the will: rules that no longer apply have allowed it.
    pub(crate) const fn discards_will(self) -> bool {
        matches!(self, Self::SessionPolicyChanged)
    }
}
