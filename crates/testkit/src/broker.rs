//! A scripted broker: a test reads and writes every byte of its connections.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::soon;

/// A listening broker, whose connections the test accepts one by one.
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

    /// The address of the broker.
    pub fn address(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// An `[[upstream]]` named `brokers` with this server and without health checks.
    pub fn upstream(&self) -> String {
        upstream(&[self.address()])
    }

    /// Accepts the next connection.
    pub async fn accept(&self) -> BrokerConnection {
        BrokerConnection(soon("a connection to the broker", self.listener.accept()).await.unwrap().0)
    }

    /// Whether no connection is waiting and none arrives within 200 ms.
    pub async fn is_left_alone(&self) -> bool {
        tokio::time::timeout(std::time::Duration::from_millis(100), self.listener.accept()).await.is_err()
    }
}

fn upstream(servers: &[SocketAddr]) -> String {
    let servers: Vec<String> = servers.iter().map(SocketAddr::to_string).collect();
    format!("[[upstream]]\nname = \"brokers\"\nservers = {servers:?}\nhealth = {{ mode = \"off\" }}\n")
}

impl BrokerConnection {
    /// Reads exactly `len` bytes.
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

    /// Reads until the end of the stream.
    pub async fn read_to_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // A reset counts as the end, too.
        let _ = soon("the end at the broker", self.0.read_to_end(&mut bytes)).await;
        bytes
    }

    /// Writes bytes.
    pub async fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }
}
