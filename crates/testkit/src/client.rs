//! A scripted client: a test reads and writes every byte of its connection.

use std::any::Any;
use std::net::SocketAddr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::{Broker, BrokerConnection, Pki, connack, soon};

trait Bytes: AsyncRead + AsyncWrite + Any + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Any + Unpin + Send> Bytes for T {}

/// A connected client.
pub struct Client(Box<dyn Bytes>);

/// The TLS configuration of a client with these TLS versions, and with the certificate of `device` unless it is `None`.
pub fn tls_config(pki: &Pki, device: Option<&str>, versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    portcullis_gateway::crypto::install_crypto_provider();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.root()).unwrap()).unwrap();
    let builder = ClientConfig::builder_with_protocol_versions(versions).with_root_certificates(roots);
    match device {
        None => builder.with_no_client_auth(),
        Some(device) => {
            pki.device(device);
            let chain = CertificateDer::pem_file_iter(pki.chain(device)).unwrap().map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_file(pki.key(device)).unwrap()).unwrap()
        }
    }
}

impl Client {
    /// Scripts an end of any connection.
    pub fn over(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Self {
        Self(Box::new(stream))
    }

    /// Connects without TLS.
    pub async fn tcp(address: SocketAddr) -> Self {
        Self(Box::new(TcpStream::connect(address).await.unwrap()))
    }

    /// Connects without TLS, from this loopback address.
    pub async fn tcp_from(from: [u8; 4], address: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        Self(Box::new(socket.connect(address).await.unwrap()))
    }

    /// Connects over TLS 1.3 or 1.2 with the certificate of a device.
    pub async fn tls(address: SocketAddr, pki: &Pki, device: &str) -> Self {
        Self::try_tls(address, tls_config(pki, Some(device), rustls::ALL_VERSIONS), "localhost").await.unwrap()
    }

    /// Connects over TLS. In TLS 1.3 a rejection by the server shows only with the first read.
    pub async fn try_tls(address: SocketAddr, config: ClientConfig, name: &str) -> std::io::Result<Self> {
        Self::try_tls_over(TcpStream::connect(address).await.unwrap(), config, name).await
    }

    /// Performs the handshake over a connection.
    pub async fn try_tls_over(
        socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        config: ClientConfig,
        name: &str,
    ) -> std::io::Result<Self> {
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, socket);
        Ok(Self(Box::new(soon("a TLS handshake", connecting).await?)))
    }

    /// Sends an MQTT 3.1.1 CONNECT, asserts that the broker receives it unchanged, and receives the CONNACK.
    pub async fn greet(&mut self, broker: &Broker, packet: &[u8]) -> BrokerConnection {
        self.write(packet).await;
        let mut connection = broker.accept().await;
        connection.expect(packet).await;
        connection.write(&connack(4)).await;
        self.expect(&connack(4)).await;
        connection
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
        self.0.flush().await.unwrap();
    }

    /// Writes bytes. Fails if the gateway has closed the connection.
    pub async fn try_write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.0.write_all(bytes).await?;
        self.0.flush().await
    }

    /// Reads once, at most `len` bytes.
    pub async fn try_read(&mut self, len: usize) -> std::io::Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        let read = soon("bytes at the client", self.0.read(&mut bytes)).await?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Reads these bytes, or panics.
    pub async fn expect(&mut self, bytes: &[u8]) {
        let mut found = vec![0; bytes.len()];
        soon("bytes at the client", self.0.read_exact(&mut found)).await.unwrap();
        assert_eq!(found, bytes, "at the client");
    }

    /// Reads until the end of the stream.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset or an alert counts as the end, too.
        let _ = soon("the end at the client", self.0.read_to_end(&mut bytes)).await;
        bytes
    }

    /// Asserts that the stream ends here, and in TLS with close_notify.
    pub async fn expect_end(&mut self) {
        let mut bytes = Vec::new();
        soon("the end", self.0.read_to_end(&mut bytes)).await.expect("a clean end");
        assert!(bytes.is_empty(), "before the end: {bytes:?}");
    }

    /// Changes the keys of what the client sends, and asks the gateway to change its own, both with the next write
    /// [RFC 8446, 4.6.3]. The client has to have connected over TLS 1.3.
    pub fn update_keys(&mut self) {
        let stream = (&mut *self.0 as &mut dyn Any).downcast_mut::<TlsStream<TcpStream>>();
        stream.expect("a connection over TLS").get_mut().1.refresh_traffic_keys().unwrap();
    }

    /// Shuts down the client's sending side.
    pub async fn shutdown(&mut self) {
        let _ = self.0.shutdown().await;
    }
}
