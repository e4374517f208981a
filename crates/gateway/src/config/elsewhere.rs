//! Keys of NGINX, HAProxy, EMQX and mosquitto, and what has their place here. For the hint about an unknown key.

/// A key, and what to write. Dashes are underscores, letters are small.
type Row = (&'static str, &'static str);

/// Values of `protocol` that users write, and what to write.
const PROTOCOLS: &[Row] = &[
    ("websocket", "write \"wss\", or \"ws\" without TLS"),
    ("websockets", "write \"wss\", or \"ws\" without TLS"),
    ("https", "write \"wss\" for WebSocket over TLS"),
    ("http", "write \"ws\" for WebSocket without TLS"),
    ("mqtts", "write \"tls\""),
    ("ssl", "write \"tls\""),
    ("mqtt", "write \"tls\", or \"tcp\" without TLS"),
    ("udp", "write \"quic\""),
];

/// Keys that mean the same in every table.
const KEYS: &[Row] = &[
    // NGINX
    ("listen", "`bind = \"0.0.0.0:8883\"` of [[listener]]"),
    ("proxy_pass", "`upstream` of [[listener]], with the name of an [[upstream]], whose `servers` are the brokers"),
    ("proxy_timeout", "`max_keep_alive` of [listener.limits]; without it, the broker enforces MQTT's keep-alive"),
    ("proxy_connect_timeout", "`connect_timeout` of [[upstream]]"),
    ("proxy_ssl", "[upstream.tls]"),
    ("proxy_ssl_trusted_certificate", "`ca` of [upstream.tls]"),
    ("proxy_ssl_certificate", "`certificate` of [upstream.tls]"),
    ("proxy_ssl_certificate_key", "`private_key` of [upstream.tls]"),
    ("proxy_ssl_name", "`server_name` of [upstream.tls]"),
    ("proxy_ssl_verify", "nothing: brokers are always verified"),
    (
        "proxy_protocol",
        "`proxy_protocol = { from = [...] }` of [[listener]], or `proxy_protocol = \"v2\"` of [[upstream]]",
    ),
    ("ssl", "`protocol = \"tls\"`, and [listener.tls]"),
    ("ssl_certificate", "`certificate` of [listener.tls]"),
    ("ssl_certificate_key", "`private_key` of [listener.tls]"),
    ("ssl_client_certificate", "`client_ca` of [listener.tls]"),
    ("ssl_trusted_certificate", "`client_ca` of [listener.tls]"),
    ("ssl_verify_client", "`client_auth = \"required\"` or \"optional\" of [listener.tls]"),
    ("ssl_verify_depth", "`verify_depth` of [listener.tls]"),
    ("ssl_crl", "`crl` of [listener.tls]"),
    ("ssl_ocsp", "`ocsp` of [listener.tls]"),
    ("ssl_stapling", "`ocsp_stapling` of [listener.tls]"),
    ("ssl_protocols", "`versions = [\"1.2\", \"1.3\"]` of [listener.tls]"),
    ("ssl_ciphers", "`cipher_preference` of [listener.tls]; the suites on offer are fixed"),
    ("ssl_prefer_server_ciphers", "`cipher_preference` of [listener.tls]; the server's preference always wins"),
    ("ssl_session_cache", "`resumption` of [listener.tls]"),
    ("ssl_session_tickets", "`resumption` of [listener.tls]"),
    ("ssl_session_timeout", "`session_lifetime` of [listener.tls]"),
    ("ssl_session_ticket_key", "`ticket_secret` of [listener.tls]"),
    ("ssl_handshake_timeout", "`handshake_timeout` of [listener.tls]"),
    ("ssl_alpn", "`alpn` of [listener.tls]"),
    ("mqtt", "nothing: every listener speaks MQTT"),
    ("mqtt_preread", "nothing: every listener reads CONNECT"),
    ("mqtt_set_connect", "`client_id`, `username` and `password` of [listener.connect]"),
    ("mqtt_buffers", "`max_connect_size` of [[listener]]"),
    ("mqtt_rewrite_buffer_size", "`max_connect_size` of [[listener]]"),
    ("preread_timeout", "`connect_timeout` of [[listener]]"),
    ("limit_conn", "`connections_per_address` of [listener.limits], or `max_connections` of [[listener]]"),
    ("worker_processes", "`worker_threads` of [runtime]"),
    ("worker_connections", "`max_connections` of [[listener]]"),
    ("error_log", "`log` of [runtime]; it goes to standard error"),
    ("log_format", "`format` of [access_log]: \"combined\" or \"json\""),
    ("least_conn", "`balance = \"least_connections\"` of [[upstream]]"),
    ("hash", "`balance = \"hash\"` and `hash_key` of [[upstream]]"),
    ("zone", "nothing: upstreams need no shared memory"),
    ("max_conns", "`max_connections` of a server"),
    ("ssl_password_file", "`private_key_passphrase` of [listener.tls]"),
    ("ssl_early_data", "nothing: early data is never accepted"),
    ("ssl_conf_command", "nothing: `versions` and `cipher_preference` of [listener.tls] are all there is to choose"),
    ("ssl_dhparam", "nothing: all key exchanges on offer are on elliptic curves"),
    ("ssl_ecdh_curve", "nothing: the curves are fixed"),
    ("ssl_reject_handshake", "nothing: `deny` of [[listener]] rejects addresses"),
    ("proxy_next_upstream", "nothing: the next server is always tried"),
    ("proxy_bind", "`source_addresses` of [[upstream]]"),
    ("source", "`source_addresses` of [[upstream]]"),
    ("source_address", "`source_addresses` of [[upstream]]"),
    ("usesrc", "`proxy_protocol` of [[upstream]]: brokers get the client's address in a header"),
    ("proxy_set_header", "`protocol = \"wss\"` of [[listener]], which speaks WebSocket itself"),
    ("websocket", "`protocol = \"wss\"` or \"ws\", and [listener.websocket]"),
    ("websockets", "`protocol = \"wss\"` or \"ws\", and [listener.websocket]"),
    ("websockets_origin", "`origins` of [listener.websocket]"),
    ("mqtt_path", "`path` of [listener.websocket]"),
    ("check_origins", "`origins` of [listener.websocket]"),
    ("check_origin_enable", "`origins` of [listener.websocket]"),
    ("fail_if_no_subprotocol", "`require_subprotocol` of [listener.websocket]"),
    ("supported_subprotocols", "nothing: `mqtt` and `mqttv3.1` are supported"),
    ("proxy_address_header", "`trusted_proxies` of [listener.websocket]"),
    ("proxy_download_rate", "nothing: `byte_rate` of [listener.limits] counts what clients send"),
    ("proxy_upload_rate", "`byte_rate` of [listener.limits]"),
    ("proxy_buffer_size", "nothing: buffers need no tuning"),
    ("proxy_socket_keepalive", "nothing: it is on, and finds dead connections"),
    (
        "worker_rlimit_nofile",
        "nothing: the gateway raises its limit itself; `LimitNOFILE=` of systemd sets the maximum",
    ),
    ("pid", "nothing: the process stays in the foreground, for systemd"),
    ("pid_file", "nothing: the process stays in the foreground, for systemd"),
    ("daemon", "nothing: the process stays in the foreground, for systemd"),
    ("user", "nothing: `User=` of systemd sets it"),
    ("js_preread", "`require` of [listener.admit]"),
    ("js_access", "`require` of [listener.admit]"),
    ("js_filter", "[listener.connect]"),
    ("stream", "nothing: [[listener]] and [[upstream]] stand at the top"),
    ("server", "[[listener]], or `servers` of [[upstream]]"),
    ("limit_conn_zone", "`connections_per_address` of [listener.limits], or `max_connections` of [[listener]]"),
    ("reuseport", "nothing: all threads accept from one socket"),
    ("backlog", "`tcp = { backlog = 4096 }` of [[listener]]"),
    ("so_keepalive", "`tcp = { keepalive = \"60s\" }` of [[listener]]"),
    ("tcp_user_timeout", "`tcp = { user_timeout = \"30s\" }` of [[listener]]"),
    ("fastopen", "nothing: TCP Fast Open stays off"),
    ("multi_accept", "nothing: connections are accepted as they come"),
    ("set_real_ip_from", "`proxy_protocol = { from = [\"10.0.0.0/8\"] }` of [[listener]]"),
    ("enable_proxy_protocol", "`proxy_protocol = { from = [\"10.0.0.0/8\"] }` of [[listener]]"),
    ("proxy_protocol_timeout", "`handshake_timeout` of [listener.tls], or without TLS `connect_timeout`"),
    ("status_zone", "nothing: every listener and upstream has metrics; [admin] serves them"),
    ("stub_status", "[admin], which serves `/metrics`"),
    ("api", "[admin]"),
    ("random", "`balance = \"random_two\"` of [[upstream]]"),
    ("round_robin", "`balance = \"round_robin\"` of [[upstream]]"),
    ("health_check", "`health` of [[upstream]]"),
    ("match", "nothing: a health check is a CONNECT; `health` of [[upstream]] sets its user"),
    // HAProxy
    ("crt", "`certificate` of [listener.tls]; the key is in `private_key`"),
    ("ca_file", "`client_ca` of [listener.tls], or `ca` of [upstream.tls]"),
    ("crl_file", "`crl` of [listener.tls]"),
    ("verify", "`client_auth` of [listener.tls]"),
    ("default_backend", "`upstream` of [[listener]]"),
    ("use_backend", "`upstream` of [[listener]]"),
    ("frontend", "[[listener]]"),
    ("backend", "[[upstream]]"),
    ("maxconn", "`max_connections` of [[listener]], or of a server"),
    ("send_proxy", "`proxy_protocol = \"v1\"` of [[upstream]]"),
    ("send_proxy_v2", "`proxy_protocol = \"v2\"` of [[upstream]]"),
    ("send_proxy_v2_ssl", "`proxy_protocol = \"v2-ssl\"` of [[upstream]]"),
    ("send_proxy_v2_ssl_cn", "`proxy_protocol = \"v2-ssl\"` of [[upstream]]"),
    ("accept_proxy", "`proxy_protocol = { from = [\"10.0.0.0/8\"] }` of [[listener]]"),
    ("timeout_client", "`max_keep_alive` of [listener.limits]; without it, the broker enforces MQTT's keep-alive"),
    ("timeout_server", "nothing: sessions end by MQTT's keep-alive, which the broker enforces"),
    ("timeout_connect", "`connect_timeout` of [[upstream]]"),
    ("stick_table", "`balance = \"hash\"` of [[upstream]]: a client keeps its broker"),
    ("option", "nothing: health checks are on; `health` of [[upstream]] changes them"),
    ("defaults", "nothing: each [[listener]] and [[upstream]] has its own keys"),
    ("global", "[runtime]"),
    ("retries", "nothing: every server is tried once"),
    ("nbthread", "`worker_threads` of [runtime]"),
    ("maxsslconn", "`max_handshakes` of [runtime]"),
    ("maxsslrate", "`max_handshakes` of [runtime]; `connect_rate` of [listener.limits] limits connections"),
    ("maxconnrate", "`connect_rate` of [listener.limits]"),
    ("maxqueue", "`handshake_queue` of [runtime], or `max_connect_rate` of [[upstream]]"),
    // Envoy
    ("concurrency", "`worker_threads` of [runtime]"),
    ("overload_manager", "`memory_limit` of [runtime]"),
    ("max_heap_size_bytes", "`memory_limit` of [runtime]"),
    ("per_connection_buffer_limit_bytes", "nothing: buffers belong to threads, not to connections"),
    ("max_connection_duration", "`max_session_lifetime` of [[listener]]"),
    ("tls_minimum_protocol_version", "`versions = [\"1.2\", \"1.3\"]` of [listener.tls]"),
    ("cipher_suites", "`cipher_preference` of [listener.tls]; the suites on offer are fixed"),
    ("tcp_request", "`allow` and `deny` of [[listener]], or `require` of [listener.admit]"),
    ("ssl_min_ver", "`versions = [\"1.2\", \"1.3\"]` of [listener.tls]"),
    ("ssl_max_ver", "`versions = [\"1.2\", \"1.3\"]` of [listener.tls]"),
    ("ssl_default_bind_ciphers", "`cipher_preference` of [listener.tls]; the suites on offer are fixed"),
    ("ssl_default_bind_ciphersuites", "`cipher_preference` of [listener.tls]; the suites on offer are fixed"),
    ("ciphersuites", "`cipher_preference` of [listener.tls]; the suites on offer are fixed"),
    ("ssl_default_bind_options", "`versions` of [listener.tls]"),
    ("ca_ignore_err", "nothing: a certificate that is not valid is rejected"),
    ("crt_ignore_err", "nothing: a certificate that is not valid is rejected"),
    // EMQX
    ("cacertfile", "`client_ca` of [listener.tls]"),
    ("certfile", "`certificate` of [listener.tls]"),
    ("keyfile", "`private_key` of [listener.tls]"),
    ("fail_if_no_peer_cert", "`client_auth = \"required\"` of [listener.tls]"),
    ("depth", "`verify_depth` of [listener.tls]"),
    ("peer_cert_as_username", "`username = 'cert.subject.cn'` of [listener.connect]"),
    ("peer_cert_as_clientid", "`client_id = 'cert.subject.cn'` of [listener.connect]"),
    ("authentication", "`authenticate` of [[listener]], with the names of [[authenticator]] tables"),
    ("authorization", "[[topic_policy]], which `topics` of [[listener]] names"),
    ("flapping_detect", "[[listener.ban]]"),
    ("max_conn_rate", "`connect_rate` of [listener.limits]"),
    ("messages_rate", "`message_rate` of [listener.limits]"),
    ("bytes_rate", "`byte_rate` of [listener.limits]"),
    ("deny_action", "`on_deny` of [[topic_policy]]"),
    ("max_qos_allowed", "`max_qos` of [[topic_policy.rule]]"),
    ("retain_available", "`retain = false` of [[topic_policy.rule]]"),
    ("session_expiry_interval", "`max_session_expiry` of [listener.limits]"),
    ("keepalive_multiplier", "nothing: it is one and a half"),
    ("max_topic_alias", "nothing: 10 at most"),
    ("acl", "[[topic_policy]], which `topics` of [[listener]] names"),
    ("action", "`effect`, `publish` and `subscribe` of [[topic_policy.rule]]"),
    ("permission", "`effect` of [[topic_policy.rule]]"),
    ("dry_run", "`mode = \"shadow\"` of [[topic_policy]]"),
    ("default_action", "`no_match` of [[topic_policy]]"),
    ("acceptors", "nothing: `worker_threads` of [runtime] sets the number of threads"),
    ("threads", "`worker_threads` of [runtime]"),
    ("max_heap_size", "`memory_limit` of [runtime]"),
    ("overload_protection", "`max_handshakes`, `handshake_queue` and `memory_limit` of [runtime]"),
    ("tcp_backlog", "`tcp = { backlog = 4096 }` of [[listener]]"),
    ("max_memory", "`memory_limit` of [runtime]"),
    ("memory_limit", "`memory_limit` of [runtime]"),
    ("enable_authn", "`authenticate` of [[listener]]"),
    ("mountpoint", "`mountpoint` of [[listener]]"),
    ("ssl_options", "[listener.tls]"),
    ("enable", "nothing: a table that is there is in use"),
    ("enabled", "nothing: a table that is there is in use"),
    ("enable_crl_check", "`crl` of [listener.tls]"),
    ("psk_authentication", "[listener.tls.psk]"),
    ("client_attrs_init", "nothing: expressions use `http`, `jwt` and `device`"),
    ("banned", "[[listener.ban]], `deny` of [[listener]], or `portcullis device ban`"),
    ("idle_timeout", "`connect_timeout` of [[listener]]"),
    ("cacerts", "`client_ca` of [listener.tls]"),
    ("hibernate_after", "nothing: idle sessions hold no buffers"),
    // mosquitto
    ("listener", "[[listener]] with `bind = \"0.0.0.0:8883\"`"),
    ("port", "`bind = \"0.0.0.0:8883\"` of [[listener]]"),
    ("bind_address", "`bind = \"0.0.0.0:8883\"` of [[listener]]"),
    ("cafile", "`client_ca` of [listener.tls]"),
    ("capath", "`client_ca` of [listener.tls], one bundle"),
    ("crlfile", "`crl` of [listener.tls]"),
    ("require_certificate", "`client_auth = \"required\"` of [listener.tls]"),
    ("use_identity_as_username", "`username = 'cert.subject.cn'` of [listener.connect]"),
    ("use_subject_as_username", "`username = 'cert.subject.dn'` of [listener.connect]"),
    ("allow_anonymous", "nothing: without `authenticate` and `client_ca`, clients are not authenticated"),
    ("password_file", "an [[authenticator]] of `kind = \"password_file\"`"),
    ("psk_file", "`file` of [listener.tls.psk]"),
    ("psk_hint", "nothing: no hint is sent"),
    ("tls_version", "`versions = [\"1.2\", \"1.3\"]` of [listener.tls]"),
    ("tls_engine", "`private_key = \"pkcs11:...\"` of [listener.tls]"),
    ("tls_keyform", "`private_key = \"pkcs11:...\"` of [listener.tls]"),
    ("use_username_as_clientid", "`client_id = 'mqtt.username'` of [listener.connect]"),
    ("max_keepalive", "`max_keep_alive` of [listener.limits]"),
    ("max_qos", "`max_qos` of [[topic_policy.rule]]"),
    ("persistence", "nothing: the gateway stores no messages"),
    ("bridge", "nothing: the gateway forwards sessions, not messages"),
    ("connection_messages", "[access_log]"),
    ("ciphers", "`cipher_preference` of [listener.tls]; the suites on offer are fixed"),
    ("acl_file", "[[topic_policy]], which `topics` of [[listener]] names"),
    ("max_inflight", "nothing: the broker's receive maximum applies"),
    ("max_inflight_messages", "nothing: the broker's receive maximum applies"),
    ("rate_limit", "`message_rate` of [listener.limits]"),
    ("clientid_prefixes", "`require` of [listener.admit], as 'mqtt.client_id.startsWith(\"thing\")'"),
    ("log_dest", "nothing: the log goes to standard error"),
    ("log_type", "`log` of [runtime]"),
    ("max_packet_size", "`max_packet_size` of [listener.limits]; for CONNECT, `max_connect_size` of [[listener]]"),
];

/// Keys that mean something else in some tables. A table is recognised by a key of ours that no other has.
const BY_TABLE: &[(&str, &[Row])] = &[
    // [[listener]]
    (
        "upstream",
        &[
            ("mode", "`mode` of [[topic_policy]] for shadow mode; every listener speaks MQTT"),
            ("disabled", "nothing: remove the table"),
        ],
    ),
    // [listener.connect]
    ("password", &[("clientid", "`client_id`"), ("user_name", "`username`"), ("user", "`username`")]),
    // [upstream.tls]
    (
        "server_name",
        &[
            ("verify", "nothing: brokers are always verified"),
            ("ssl", "nothing: the table turns TLS on"),
            ("certfile", "`certificate`"),
            ("crt", "`certificate`"),
            ("ssl_certificate", "`certificate`"),
            ("keyfile", "`private_key`"),
            ("ssl_certificate_key", "`private_key`"),
            ("cafile", "`ca`"),
            ("ca_file", "`ca`"),
            ("cacertfile", "`ca`"),
            ("client_ca", "`ca`"),
            ("ssl_trusted_certificate", "`ca`"),
            ("sni", "`server_name`"),
        ],
    ),
    // A server of [[upstream]]
    (
        "weight",
        &[
            ("port", "a part of `address`: \"10.0.0.113:1883\""),
            ("host", "`address`: \"10.0.0.113:1883\""),
            ("server", "`address`: \"10.0.0.113:1883\""),
            ("ssl", "[upstream.tls]"),
            ("check", "nothing: health checks are on; `health` of [[upstream]] changes them"),
            ("inter", "`interval` in `health` of [[upstream]]"),
            ("fall", "`fails` in `health` of [[upstream]]"),
            ("rise", "`passes` in `health` of [[upstream]]"),
            ("disabled", "`down = true`"),
        ],
    ),
    // [[upstream]]
    ("balance", &[("ssl", "[upstream.tls]"), ("server", "`servers`")]),
    // [listener.websocket]
    (
        "require_subprotocol",
        &[
            ("set_real_ip_from", "`trusted_proxies`"),
            ("real_ip_header", "nothing: `X-Forwarded-For`, `X-Real-IP` and `Forwarded` are read"),
            ("real_ip_recursive", "nothing: the rightmost address that is not of a proxy counts"),
        ],
    ),
    // [[topic_policy.rule]]
    (
        "publish_from",
        &[
            ("topics", "`publish` and `subscribe`"),
            ("topic", "`publish` and `subscribe`"),
            ("filter", "`subscribe`"),
            ("pub", "`publish`"),
            ("sub", "`subscribe`"),
            ("allow", "`effect = \"allow\"`, which is the default"),
            ("deny", "`effect = \"deny\"`"),
            ("qos", "`max_qos`"),
            ("access", "`effect`, `publish` and `subscribe`"),
        ],
    ),
    // [[topic_policy]]
    ("no_match", &[("shadow", "`mode = \"shadow\"`"), ("default", "`no_match`"), ("rules", "[[topic_policy.rule]]")]),
    // [[authenticator]]
    (
        "kind",
        &[
            ("backend", "`kind`"),
            ("mechanism", "`kind`"),
            ("request_timeout", "`timeout`"),
            ("connect_timeout", "`timeout`"),
            ("pool_size", "`max_concurrency`"),
            ("enable_pipelining", "nothing: each request has a connection while it lasts"),
            ("endpoint", "`jwks`"),
            ("verify_claims", "`issuer` and `audience`; `require` of [listener.admit] for others"),
            ("password_file", "`file`"),
        ],
    ),
];

/// What to write in place of a key that is another product's. `known`: the keys of the table; `may_be_misspelt`: whether a
/// similar key will do.
pub(super) fn instead_of(key: &str, known: &[&str], may_be_misspelt: bool) -> Option<String> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    let of_table = BY_TABLE.iter().filter(|(mark, _)| known.contains(mark)).flat_map(|(_, rows)| rows.iter());
    let exact = of_table.chain(KEYS).find(|(name, _)| *name == key);
    // With the same beginning: a key that is merely similar means something else.
    let is_typo =
        |name: &str| name.len() >= 8 && name.get(..4) == key.get(..4) && strsim::osa_distance(name, &key) <= 2;
    let (_, ours) = exact.or_else(|| KEYS.iter().find(|(name, _)| may_be_misspelt && is_typo(name)))?;
    Some(match ours.strip_prefix("nothing") {
        Some(rest) => format!("it has no counterpart here{rest}"),
        None => format!("use {ours}"),
    })
}

/// A hint for a value that is not among the known ones; `None`: it is not known what was meant.
pub(super) fn value_instead_of(value: &str, known: &[&str]) -> Option<&'static str> {
    let value = value.to_ascii_lowercase();
    let row = PROTOCOLS.iter().find(|(name, _)| known.contains(&"quic") && *name == value);
    row.map(|(_, hint)| *hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_products_are_answered_with_ours() {
        const LISTENER: &[&str] = &["name", "bind", "upstream"];
        const CONNECT: &[&str] = &["client_id", "username", "password"];
        const BROKER_TLS: &[&str] = &["ca", "certificate", "private_key", "server_name"];
        const SERVER: &[&str] = &["address", "weight", "backup"];
        for (known, key, ours) in [
            (LISTENER, "ssl_client_certificate", "use `client_ca` of [listener.tls]"),
            (LISTENER, "ssl_verify_clienet", "use `client_auth = \"required\"`"),
            (LISTENER, "cacertfile", "use `client_ca`"),
            (LISTENER, "send-proxy", "use `proxy_protocol = \"v1\"` of [[upstream]]"),
            (LISTENER, "LISTEN", "use `bind"),
            (LISTENER, "mode", "use `mode` of [[topic_policy]]"),
            (LISTENER, "enable", "it has no counterpart here: a table that is there is in use"),
            (LISTENER, "pid_file", "it has no counterpart here: the process stays"),
            (LISTENER, "ssl_ciphers", "use `cipher_preference` of [listener.tls]"),
            (LISTENER, "ssl_password_file", "use `private_key_passphrase`"),
            (CONNECT, "clientid", "use `client_id`"),
            (BROKER_TLS, "cafile", "use `ca`"),
            (BROKER_TLS, "verify", "it has no counterpart here: brokers are always verified"),
            (SERVER, "max_conns", "use `max_connections` of a server"),
            (SERVER, "port", "use a part of `address`"),
        ] {
            let hint = instead_of(key, known, true);
            assert!(hint.as_ref().is_some_and(|hint| hint.starts_with(ours)), "{key}: {hint:?}");
        }
        for other in ["completely_other", "worker_rlimit"] {
            assert_eq!(instead_of(other, LISTENER, true), None, "{other}");
        }
    }
}
