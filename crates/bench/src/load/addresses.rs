//! The addresses that devices of a fleet connect from.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context as _;
use tokio::net::{TcpSocket, TcpStream};

/// So many addresses of this machine connect, as devices of a fleet do: a proxy may limit what one address can take.
const ADDRESSES: usize = 50;

/// The connection of the `n`th device.
pub(crate) async fn socket_from(n: usize, proxy: SocketAddr) -> anyhow::Result<TcpStream> {
    let [.., host] = (1 + n % ADDRESSES).to_be_bytes();
    let socket = TcpSocket::new_v4()?;
    socket.bind((Ipv4Addr::new(127, 0, 0, host), 0).into())?;
    socket.connect(proxy).await.context("TCP connect")
}
