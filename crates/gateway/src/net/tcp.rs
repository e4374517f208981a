//! Listening sockets and the options of connected sockets.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::config::tables::Tcp;

/// The time between two probes of a peer that is silent. The user timeout replaces their number.
const PROBES: Duration = Duration::from_secs(15);

/// Opens a listening socket, whose options accepted sockets inherit. Port 0 picks a free one. TCP Fast Open stays off: data in a SYN
/// may be a copy of an earlier one.
///
/// # Errors
/// The address is in use, does not belong to this machine, or is not permitted.
pub(crate) fn bind(address: SocketAddr, settings: &Tcp) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `[::]` accepts IPv6 only, as in NGINX, so that `0.0.0.0` can be bound as well.
        socket.set_only_v6(true)?;
    }
    socket.set_tcp_nodelay(true)?;
    detect_vanished_peer(&SockRef::from(&socket), settings)?;
    socket.bind(&address.into())?;
    socket.listen(backlog_of(settings))?;
    TcpListener::from_std(socket.into())
}

/// Uses a listening socket that another process has opened, as if [`bind`] had.
///
/// # Errors
/// The system does not know the options, or has no resources left.
pub(crate) fn adopt(listener: std::net::TcpListener, settings: &Tcp) -> io::Result<TcpListener> {
    SockRef::from(&listener).set_tcp_nodelay(true)?;
    let listener = TcpListener::from_std(listener)?;
    configure(&listener, settings)?;
    Ok(listener)
}

/// Applies other settings to a listening socket, for connections that come.
///
/// # Errors
/// The system does not know the options.
pub(crate) fn configure(listener: &TcpListener, settings: &Tcp) -> io::Result<()> {
    let socket = SockRef::from(listener);
    detect_vanished_peer(&socket, settings)?;
    socket.listen(backlog_of(settings))
}

fn backlog_of(settings: &Tcp) -> i32 {
    i32::try_from(settings.backlog).unwrap_or(i32::MAX)
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
pub(super) fn detect_vanished_peer(socket: &SockRef<'_>, settings: &Tcp) -> io::Result<()> {
    match settings.keepalive {
        Some(silence) => {
            let interval = PROBES.min(silence).max(Duration::from_secs(1));
            socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(silence).with_interval(interval))?;
        }
        None => socket.set_keepalive(false)?,
    }
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(settings.user_timeout))?;
    Ok(())
}

/// As [`Socket::acknowledge_at_once`](super::Socket::acknowledge_at_once).
pub(super) fn acknowledge_at_once(socket: &TcpStream) {
    #[cfg(target_os = "linux")]
    let _ = SockRef::from(socket).set_tcp_quickack(true);
}
