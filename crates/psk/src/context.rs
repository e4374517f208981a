//! The OpenSSL context of a server with pre-shared keys.

use openssl::error::ErrorStack;
use openssl::ssl::{
    AlpnError, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVersion,
};

use crate::{Settings, Version, handshake};

/// The cipher suites of TLS 1.2, those with forward secrecy first.
const CIPHERS: &str = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:\
                       PSK-CHACHA20-POLY1305:PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256:PSK-AES256-CCM:PSK-AES128-CCM";
/// The cipher suites of TLS 1.3: external keys are bound to SHA-256 [RFC 8446, 4.2.11].
const CIPHER_SUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";

pub(crate) fn build(settings: Settings<'_>) -> Result<SslContext, ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
    let has = |version| settings.versions.contains(&version);
    let number = |is_old| if is_old { SslVersion::TLS1_2 } else { SslVersion::TLS1_3 };
    context.set_min_proto_version(Some(number(has(Version::Tls12))))?;
    context.set_max_proto_version(Some(number(!has(Version::Tls13))))?;
    context.set_cipher_list(CIPHERS)?;
    context.set_ciphersuites(CIPHER_SUITES)?;
    context.set_options(
        SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    context.set_num_tickets(0)?;
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    // An idle connection holds no buffer. Like any stream, it accepts a part of what it is given, and what did not fit may
    // come again from another buffer: otherwise OpenSSL fails the write, and the connection with it.
    context.set_mode(SslMode::RELEASE_BUFFERS | SslMode::ENABLE_PARTIAL_WRITE | SslMode::ACCEPT_MOVING_WRITE_BUFFER);
    context.set_psk_server_callback(|ssl, identity, key| handshake::supply_key(ssl, identity, key));
    if !settings.alpn.is_empty() {
        let ours = settings.alpn.to_vec();
        context.set_alpn_select_callback(move |_, offered| {
            let chosen = ours.iter().find_map(|name| protocols(offered).find(|theirs| *theirs == name.as_bytes()));
            chosen.ok_or(AlpnError::ALERT_FATAL)
        });
    }
    Ok(context.build())
}

/// Iterates over the names of a client's ALPN list, each preceded by its length [RFC 7301, 3.1].
fn protocols(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = list.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*len))?;
        list = rest;
        Some(name)
    })
}
