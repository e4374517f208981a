//! A client over QUIC, whose connection and socket a test controls.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint};

use tokio::net::UdpSocket;

use crate::{Client, soon};

/// A connected client. Dropped, it closes the connection.
pub struct QuicClient {
    /// The connection.
    pub connection: Connection,
    endpoint: Endpoint,
}

impl QuicClient {
    /// Connects with a configuration for TLS 1.3 from this loopback address.
    ///
    /// # Errors
    /// The handshake failed. If the server rejects the client's certificate, that shows later.
    pub async fn connect(
        from: [u8; 4],
        address: SocketAddr,
        tls: rustls::ClientConfig,
    ) -> Result<Self, ConnectionError> {
        Self::connect_with(from, address, Self::config(tls)).await
    }

    /// What [`connect`](Self::connect) makes of a configuration for TLS. Connections with the same one can be resumed.
    pub fn config(tls: rustls::ClientConfig) -> ClientConfig {
        ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).unwrap()))
    }

    /// As [`connect`](Self::connect).
    pub async fn connect_with(
        from: [u8; 4],
        address: SocketAddr,
        config: ClientConfig,
    ) -> Result<Self, ConnectionError> {
        let endpoint = Endpoint::client((from, 0).into()).unwrap();
        let connecting = endpoint.connect_with(config, address, "localhost").unwrap();
        let connection = soon("a QUIC handshake", connecting).await?;
        Ok(Self { connection, endpoint })
    }

    /// Opens a stream.
    pub async fn open(&self) -> Client {
        let (send, receive) = soon("a stream", self.connection.open_bi()).await.unwrap();
        Client::over(tokio::io::join(receive, send))
    }

    /// Goes on from another address, as a phone does that leaves a network.
    pub fn migrate(&self, to: [u8; 4]) {
        self.endpoint.rebind(std::net::UdpSocket::bind((Ipv4Addr::from(to), 0)).unwrap()).unwrap();
    }
}

/// A network between a client and a gateway, which a test can cut.
pub struct UdpPath {
    /// Where the client connects to.
    pub address: SocketAddr,
    is_cut: Arc<AtomicBool>,
}

impl UdpPath {
    /// A path to a gateway, for one client.
    pub async fn to(gateway: SocketAddr) -> Self {
        let (near, far) =
            (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
        far.connect(gateway).await.unwrap();
        let (address, is_cut) = (near.local_addr().unwrap(), Arc::new(AtomicBool::new(false)));
        let cut = Arc::clone(&is_cut);
        tokio::spawn(async move {
            let (mut there, mut back, mut client) = ([0; 2048], [0; 2048], None);
            loop {
                tokio::select! {
                    Ok((len, from)) = near.recv_from(&mut there) => {
                        client = Some(from);
                        if !cut.load(Ordering::Relaxed) {
                            let _ = far.send(&there[..len]).await;
                        }
                    }
                    Ok(len) = far.recv(&mut back) => {
                        if let Some(client) = client.filter(|_| !cut.load(Ordering::Relaxed)) {
                            let _ = near.send_to(&back[..len], client).await;
                        }
                    }
                    else => return,
                }
            }
        });
        Self { address, is_cut }
    }

    /// Lets nothing through any more.
    pub fn cut(&self) {
        self.is_cut.store(true, Ordering::Relaxed);
    }
}
