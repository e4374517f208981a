//! One device: a certificate and an address -> a TLS connection with an MQTT session.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use portcullis_pki::Authority;
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, HandshakeKind};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::mqtt;
use super::trusting::Trusting;

pub(crate) type Session = TlsStream<TcpStream>;

/// How long a handshake, or CONNECT and its answer, may take.
const DEADLINE: Duration = Duration::from_secs(60);

/// A device that never resumes: TLS 1.3, X25519, AES-256-GCM, the whole chain.
pub(crate) fn client_config(authority: &Authority, device: &str) -> anyhow::Result<ClientConfig> {
    let chain = CertificateDer::pem_file_iter(authority.chain_of(device))?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(authority.key_of(device))?;
    // A group that all peers support: OpenSSL 3.0 has no post-quantum key exchange.
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.kx_groups = vec![rustls::crypto::aws_lc_rs::kx_group::X25519];
    provider.cipher_suites = vec![rustls::crypto::aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384];
    let mut config = ClientConfig::builder_with_provider(provider.into())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Trusting))
        .with_client_auth_cert(chain, key)?;
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// Connects over TLS, without CONNECT.
pub(crate) async fn handshake(connector: &TlsConnector, socket: TcpStream) -> anyhow::Result<Session> {
    socket.set_nodelay(true)?;
    let connecting = connector.connect(ServerName::try_from("localhost")?, socket);
    timeout(DEADLINE, connecting).await.context("TLS handshake: no end")?.context("TLS handshake")
}

/// Opens a session with this CONNECT.
pub(crate) async fn session_as(
    connector: &TlsConnector,
    address: SocketAddr,
    connect: &[u8],
) -> anyhow::Result<Session> {
    let socket = timeout(DEADLINE, TcpStream::connect(address)).await.context("TCP connect: no end")?;
    session_over(connector, socket.context("TCP connect")?, connect).await
}

/// As [`session_as`], over a connected socket.
pub(super) async fn session_over(
    connector: &TlsConnector,
    socket: TcpStream,
    connect: &[u8],
) -> anyhow::Result<Session> {
    let mut stream = handshake(connector, socket).await?;
    stream.write_all(connect).await.context("CONNECT")?;
    let mut answer = [0; mqtt::CONNACK.len()];
    let reading = stream.read_exact(&mut answer);
    timeout(DEADLINE, reading).await.context("no CONNACK in time")?.context("CONNACK")?;
    ensure!(answer == mqtt::CONNACK, "CONNECT was rejected");
    Ok(stream)
}

/// Waits until the other side has closed the connection. What it sends before is not expected.
pub(super) async fn wait_for_end(session: &mut Session) -> anyhow::Result<()> {
    let count = timeout(DEADLINE, session.read(&mut [0])).await.context("the connection stays open")??;
    ensure!(count == 0, "something else than the end of the connection");
    Ok(())
}

pub(super) fn is_resumed(session: &Session) -> bool {
    session.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed)
}
