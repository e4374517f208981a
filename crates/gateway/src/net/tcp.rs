//! Listening sockets and the options of connected sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

/// The length of the kernel's accept queue. The kernel caps it at its own limit, `net.core.somaxconn`, which is the operator's.
pub(super) const BACKLOG: i32 = 65_535;
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
    socket.set_tcp_nodelay(true)?;
    detect_vanished_peer(&SockRef::from(&socket))?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to a server. If the connection lasts, [`detect_vanished_peer`] has to watch it. `speaks_alone`: what the caller sends at
/// once is all that it sends until the server answers. [`acknowledge_at_once`] has to follow if that may be several packets. `source`:
/// the local address; `None`: the system's choice.
///
/// # Errors
/// The server does not accept the connection, or this machine lacks descriptors or ports.
pub(crate) async fn connect(address: SocketAddr, source: Option<IpAddr>, speaks_alone: bool) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    if speaks_alone {
        // Those bytes carry the acknowledgement of the server's SYN: a packet less, and the server wakes up once in place of twice.
        let _ = SockRef::from(&socket).set_tcp_quickack(false);
    }
    if let Some(source) = source {
        // The port is chosen with the connection, so that it has to be free for this server only, and not for all.
        #[cfg(target_os = "linux")]
        nix::sys::socket::setsockopt(&socket, nix::sys::socket::sockopt::IpBindAddressNoPort, &true)?;
        socket.bind((source, 0).into())?;
    }
    socket.connect(address).await
}

/// Lets the kernel end the connection to a peer that has vanished.
///
/// # Errors
/// The system does not know the options.
pub(super) fn detect_vanished_peer(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(&KEEPALIVE)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(())
}

/// As [`Socket::acknowledge_at_once`](super::Socket::acknowledge_at_once).
pub(super) fn acknowledge_at_once(socket: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(socket).set_tcp_quickack(true);
}
