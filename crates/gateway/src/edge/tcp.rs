//! Listening sockets, and what every connected socket is set to.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// Connections the kernel keeps ready before they are accepted; it cuts this to its own limit.
const BACKLOG: i32 = 4096;
/// A peer that vanished without a word is noticed after 60 s of silence and 3 probes 15 s apart.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15)).with_retries(3);
/// ... and after that long with bytes unacknowledged.
const USER_TIMEOUT: Duration = Duration::from_secs(105);

/// Opens a listening socket. Port 0 picks a free one.
///
/// # Errors
/// The address is in use, not of this machine, or not allowed.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` is for IPv6 alone, as NGINX has it: "0.0.0.0" can stand beside it.
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Sets a connected socket up: no delay (a TLS 1.3 handshake with tickets stalls 40 ms with it), and dead peers are
/// noticed.
///
/// # Errors
/// The connection is gone already.
pub fn tune(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}
