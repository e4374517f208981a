//! A broker that does what a test tells it to, byte by byte.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::soon;

/// Accepts connections, one after the other.
pub struct Broker {
    listener: TcpListener,
}

/// A connection to the scripted broker.
pub struct BrokerConnection(pub TcpStream);

impl Broker {
    /// Listens on a free port.
    pub async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// An `[[upstream]]` named `brokers` with this server and without health checks.
    pub fn upstream(&self) -> String {
        upstream(&[self.address()])
    }

    /// The next connection.
    pub async fn accept(&self) -> BrokerConnection {
        BrokerConnection(soon("a connection to the broker", self.listener.accept()).await.unwrap().0)
    }

    /// Whether nobody has connected, and nobody does for a moment.
    pub async fn is_left_alone(&self) -> bool {
        tokio::time::timeout(std::time::Duration::from_millis(100), self.listener.accept()).await.is_err()
    }
}

fn upstream(servers: &[SocketAddr]) -> String {
    let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    format!("[[upstream]]\nname = \"brokers\"\nservers = {servers:?}\nhealth = {{ mode = \"off\" }}\n")
}

impl BrokerConnection {
    /// Reads exactly that many bytes.
    pub async fn read(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        soon("bytes at the broker", self.0.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// Reads these bytes, or panics.
    pub async fn expect(&mut self, bytes: &[u8]) {
        let found = self.read(bytes.len()).await;
        assert_eq!(found, bytes, "at the broker");
    }

    /// Reads to the end.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset is an end too.
        let _ = soon("the end at the broker", self.0.read_to_end(&mut bytes)).await;
        bytes
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }
}
