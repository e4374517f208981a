//! Devices over QUIC. All share one UDP socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
use rustls::CipherSuite;
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;

/// Connects with the certificate of a connector for TLS, and opens a stream.
pub(crate) async fn open(
    connector: &TlsConnector,
    address: SocketAddr,
) -> anyhow::Result<(SendStream, RecvStream, Connection)> {
    static ENDPOINT: OnceCell<Endpoint> = OnceCell::const_new();
    let endpoint =
        ENDPOINT.get_or_try_init(async || Endpoint::client((Ipv4Addr::LOCALHOST, 0).into()).context("UDP")).await?;
    let mut config = rustls::ClientConfig::clone(connector.config());
    config.alpn_protocols = vec![b"mqtt".to_vec()];
    // Devices have one suite, and the first packets of QUIC another one.
    let initial = rustls::crypto::aws_lc_rs::default_provider().cipher_suites.into_iter().find_map(|suite| {
        let suite = suite.tls13().filter(|it| it.common.suite == CipherSuite::TLS13_AES_128_GCM_SHA256)?;
        suite.quic_suite()
    });
    let config = QuicClientConfig::with_initial(Arc::new(config), initial.context("no AES-128-GCM")?)?;
    let config = ClientConfig::new(Arc::new(config));
    let connection = endpoint.connect_with(config, address, "localhost")?.await.context("handshake")?;
    let (writer, reader) = connection.open_bi().await?;
    Ok((writer, reader, connection))
}
