//! Keys of NGINX, HAProxy, EMQX and mosquitto, and what has their place here. For the hint about an unknown key.

use crate::util::suggest::suggest;

/// Key, and what to write. Dashes are underscores, letters are small.
const KEYS: &[(&str, &str)] = &[
    // NGINX
    ("listen", "`bind = \"0.0.0.0:8883\"` of [[listener]]"),
    ("proxy_pass", "`upstream` of [[listener]] names an [[upstream]], whose `servers` are the brokers"),
    ("proxy_timeout", "nothing: sessions end by MQTT's keep-alive, which the broker enforces"),
    ("proxy_connect_timeout", "`connect_timeout` of [[upstream]]"),
    ("proxy_ssl", "[upstream.tls]"),
    ("proxy_ssl_trusted_certificate", "`ca` of [upstream.tls]"),
    ("proxy_ssl_certificate", "`certificate` of [upstream.tls]"),
    ("proxy_ssl_certificate_key", "`private_key` of [upstream.tls]"),
    ("proxy_ssl_name", "`server_name` of [upstream.tls]"),
    ("proxy_ssl_verify", "nothing: brokers are always verified"),
    ("proxy_protocol", "nothing yet: the PROXY protocol is not supported"),
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
    ("ssl_ciphers", "nothing: all suites on offer are secure"),
    ("ssl_prefer_server_ciphers", "nothing: the server's preference always wins"),
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
    ("limit_conn", "`max_connections` of [[listener]]"),
    ("worker_processes", "`worker_threads` of [runtime]"),
    ("worker_connections", "`max_connections` of [[listener]]"),
    ("error_log", "`log` of [runtime]; it goes to standard error"),
    ("log_format", "`format` of [access_log]: \"combined\" or \"json\""),
    ("least_conn", "`balance = \"least_connections\"` of [[upstream]]"),
    ("hash", "`balance = \"hash\"` and `hash_key` of [[upstream]]"),
    ("zone", "nothing: upstreams need no shared memory"),
    // HAProxy
    ("crt", "`certificate` of [listener.tls]; the key is in `private_key`"),
    ("ca_file", "`client_ca` of [listener.tls], or `ca` of [upstream.tls]"),
    ("crl_file", "`crl` of [listener.tls]"),
    ("verify", "`client_auth` of [listener.tls]"),
    ("mode", "nothing: every listener speaks MQTT"),
    ("default_backend", "`upstream` of [[listener]]"),
    ("use_backend", "`upstream` of [[listener]]"),
    ("frontend", "[[listener]]"),
    ("backend", "[[upstream]]"),
    ("maxconn", "`max_connections` of [[listener]], or of a server"),
    ("send_proxy", "nothing yet: the PROXY protocol is not supported"),
    ("send_proxy_v2", "nothing yet: the PROXY protocol is not supported"),
    ("accept_proxy", "nothing yet: the PROXY protocol is not supported"),
    ("timeout_client", "nothing: sessions end by MQTT's keep-alive, which the broker enforces"),
    ("timeout_server", "nothing: sessions end by MQTT's keep-alive, which the broker enforces"),
    ("timeout_connect", "`connect_timeout` of [[upstream]]"),
    ("stick_table", "`balance = \"hash\"` of [[upstream]]: a client keeps its broker"),
    ("option", "nothing: health checks are on; `health` of [[upstream]] changes them"),
    // EMQX
    ("cacertfile", "`client_ca` of [listener.tls]"),
    ("certfile", "`certificate` of [listener.tls]"),
    ("keyfile", "`private_key` of [listener.tls]"),
    ("fail_if_no_peer_cert", "`client_auth = \"required\"` of [listener.tls]"),
    ("depth", "`verify_depth` of [listener.tls]"),
    ("peer_cert_as_username", "`username = 'cert.subject.cn'` of [listener.connect]"),
    ("peer_cert_as_clientid", "`client_id = 'cert.subject.cn'` of [listener.connect]"),
    ("authentication", "`authenticate` of [[listener]] names [[authenticator]] tables"),
    ("authorization", "`require` of [listener.admit]; topic rules stay with the broker"),
    ("flapping_detect", "[[listener.ban]]"),
    ("max_conn_rate", "[[listener.ban]] with `on = [\"connect\"]`"),
    ("acceptors", "nothing: `worker_threads` of [runtime] sets the number of threads"),
    ("enable_authn", "`authenticate` of [[listener]]"),
    ("mountpoint", "nothing: topics are not rewritten"),
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
    ("ciphers", "nothing: all suites on offer are secure"),
    ("acl_file", "nothing: topic rules stay with the broker"),
    ("clientid_prefixes", "`require` of [listener.admit], as 'mqtt.client_id.startsWith(\"thing\")'"),
    ("log_dest", "nothing: the log goes to standard error"),
    ("log_type", "`log` of [runtime]"),
    ("max_packet_size", "`max_connect_size` of [[listener]], for CONNECT"),
];

/// What to write in place of a key that is another product's, also if it is misspelt.
pub(super) fn instead_of(key: &str) -> Option<String> {
    let key = key.to_ascii_lowercase().replace('-', "_");
    let exact = KEYS.iter().find(|(name, _)| *name == key);
    // A short word is similar to too many others.
    let similar = || {
        let meant = suggest(&key, KEYS.iter().map(|(name, _)| *name).filter(|name| name.len() > 7))?;
        KEYS.iter().find(|(name, _)| *name == meant)
    };
    exact.or_else(similar).map(|(_, ours)| match ours.strip_prefix("nothing") {
        Some(rest) => format!("it has no counterpart here{rest}"),
        None => format!("here it is {ours}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_other_products_are_answered_with_ours() {
        for (key, ours) in [
            ("ssl_client_certificate", "here it is `client_ca` of [listener.tls]"),
            ("ssl_verify_clienet", "here it is `client_auth = \"required\"`"),
            ("cacertfile", "here it is `client_ca`"),
            ("send-proxy", "it has no counterpart here yet: the PROXY protocol"),
            ("LISTEN", "here it is `bind"),
        ] {
            assert!(instead_of(key).is_some_and(|hint| hint.starts_with(ours)), "{key}: {:?}", instead_of(key));
        }
        assert_eq!(instead_of("completely_other"), None);
    }
}
