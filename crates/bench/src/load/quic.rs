//! Devices over QUIC. All share one UDP socket.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::Context as _;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, Endpoint, RecvStream, SendStream};
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
    let config = ClientConfig::new(Arc::new(QuicClientConfig::try_from(config)?));
    let connection = endpoint.connect_with(config, address, "localhost")?.await.context("handshake")?;
    let (writer, reader) = connection.open_bi().await?;
    Ok((writer, reader, connection))
}
