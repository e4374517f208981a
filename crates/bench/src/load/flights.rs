//! A device that handshakes by hand, flight by flight: it can wait before each, or stop in the middle of one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::mqtt;

/// One connection, and what its TLS knows.
pub(crate) struct Flights {
    tls: ClientConnection,
    socket: TcpStream,
}

/// Where a device stops.
#[derive(Clone, Copy)]
pub(crate) enum Stop {
    /// In the middle of ClientHello.
    Hello,
    /// In the middle of what follows the server's flight: its certificates, its signature.
    Certificate,
}

impl Flights {
    pub(crate) fn new(config: Arc<ClientConfig>, socket: TcpStream) -> anyhow::Result<Self> {
        socket.set_nodelay(true)?;
        Ok(Self { tls: ClientConnection::new(config, ServerName::try_from("localhost")?)?, socket })
    }

    /// Handshake, CONNECT, CONNACK; waits for `delay` before each flight.
    pub(crate) async fn connect(&mut self, connect: &[u8], delay: Duration) -> anyhow::Result<()> {
        sleep(delay).await;
        self.send().await?;
        self.receive_flight().await.context("TLS handshake")?;
        sleep(delay).await;
        self.send().await?;
        std::io::Write::write_all(&mut self.tls.writer(), connect)?;
        self.send().await?;
        while self.receive().await.context("CONNACK")? < mqtt::CONNACK.len() {}
        let mut answer = [0; mqtt::CONNACK.len()];
        std::io::Read::read_exact(&mut self.tls.reader(), &mut answer)?;
        ensure!(answer == mqtt::CONNACK, "CONNECT was rejected");
        Ok(())
    }

    /// Handshakes as far as the middle of a flight.
    pub(crate) async fn stop_in(&mut self, stop: Stop) -> anyhow::Result<()> {
        if matches!(stop, Stop::Certificate) {
            self.send().await?;
            self.receive_flight().await?;
        }
        let flight = self.flight()?;
        Ok(self.socket.write_all(&flight[..flight.len() / 2]).await?)
    }

    /// Waits until the server has closed the connection.
    pub(crate) async fn closed(&mut self) {
        while self.socket.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {}
    }

    /// Whether the server has kept the connection.
    pub(crate) fn is_open(&self) -> bool {
        loop {
            match self.socket.try_read(&mut [0; 1024]) {
                Ok(0) => return false,
                Ok(_) => {}
                Err(error) => return error.kind() == std::io::ErrorKind::WouldBlock,
            }
        }
    }

    async fn send(&mut self) -> anyhow::Result<()> {
        let flight = self.flight()?;
        Ok(self.socket.write_all(&flight).await?)
    }

    /// What TLS has to send.
    fn flight(&mut self) -> anyhow::Result<Vec<u8>> {
        let mut flight = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut flight)?;
        }
        Ok(flight)
    }

    /// Receives until the rest of the handshake can be sent.
    async fn receive_flight(&mut self) -> anyhow::Result<()> {
        while self.tls.is_handshaking() {
            self.receive().await?;
        }
        Ok(())
    }

    /// Receives something. Returns how many bytes of plaintext can be read.
    async fn receive(&mut self) -> anyhow::Result<usize> {
        let mut buffer = [0; 4096];
        let count = self.socket.read(&mut buffer).await?;
        ensure!(count > 0, "the server has closed the connection");
        let (mut rest, mut plaintext) = (&buffer[..count], 0);
        while !rest.is_empty() {
            self.tls.read_tls(&mut rest)?;
            plaintext = self.tls.process_new_packets()?.plaintext_bytes_to_read();
        }
        Ok(plaintext)
    }
}
