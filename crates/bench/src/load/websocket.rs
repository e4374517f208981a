//! The request for WebSocket, and frames of a client: bytes of MQTT -> bytes of a frame.

use anyhow::{Context as _, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Session;

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
/// The length of the answer: the request names no subprotocol.
const ANSWER: usize = 129;
/// The header of a frame of the server with less than 126 bytes.
pub(crate) const HEADER: usize = 2;

/// Upgrades a connection.
pub(crate) async fn upgrade(stream: &mut Session) -> anyhow::Result<()> {
    stream.write_all(REQUEST.as_bytes()).await?;
    let mut answer = [0; ANSWER];
    stream.read_exact(&mut answer).await.context("the answer to the request for WebSocket")?;
    ensure!(answer.starts_with(b"HTTP/1.1 101 ") && answer.ends_with(b"\r\n\r\n"), "no upgrade to WebSocket");
    Ok(())
}

/// A binary frame, masked with zeros, which costs the gateway what any mask does.
pub(crate) fn frame(payload: &[u8]) -> Vec<u8> {
    let len = match payload.len() {
        len @ 0..126 => vec![0x80 | u8::try_from(len).unwrap_or_default()],
        len @ 126..65_536 => [&[0xFE][..], &u16::try_from(len).unwrap_or_default().to_be_bytes()].concat(),
        len => [&[0xFF][..], &(len as u64).to_be_bytes()].concat(),
    };
    [&[0x82][..], &len, &[0; 4], payload].concat()
}
