//! Listening sockets and the options of connected sockets.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream};

/// An accepted connection below TLS. TLS and sessions name only this type.
pub(crate) type Socket = TcpStream;

/// The length of the kernel's accept queue. The kernel caps it at its own limit, `net.core.somaxconn`, which is the operator's.
const BACKLOG: i32 = 65_535;
/// A peer that vanished is detected after 60 s of silence, when it has not answered probes 15 s apart for the rest of
/// [`USER_TIMEOUT`], which replaces a number of probes.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
/// A peer that stops acknowledging bytes is detected after this time.
const USER_TIMEOUT: Duration = Duration::from_secs(105);

/// Opens a listening socket, whose options accepted sockets inherit. Port 0 picks a free one.
///
/// # Errors
/// The address is in use, does not belong to this machine, or is not permitted.
pub(crate) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` accepts IPv6 only, as in NGINX, so that `0.0.0.0` can be bound as well.
        socket.set_only_v6(true)?;
    }
    set_options(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to a server.
///
/// # Errors
/// The server does not accept the connection, or this machine lacks descriptors or ports.
pub(crate) async fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpStream::connect(address).await?;
    set_options(&SockRef::from(&socket))?;
    Ok(socket)
}

/// No Nagle delay, which would stall a TLS 1.3 handshake with tickets for 40 ms, and detection of dead peers.
fn set_options(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// Acknowledges at once what was received. Call it where the gateway has nothing to send after a handshake: a client whose
/// Nagle algorithm holds CONNECT back until its last packet is acknowledged would wait for the delayed acknowledgement,
/// 40 ms.
pub(crate) fn acknowledge_now(socket: &Socket) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(socket).set_tcp_quickack(true);
}
