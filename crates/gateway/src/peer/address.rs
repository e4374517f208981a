//! Addresses of clients: where a connection comes from, as rules, limits and logs see it.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerAddress {
    /// An IP address and port.
    Ip(SocketAddr),
    /// A process on this machine, connected by a Unix socket. Such sockets tell the processes apart by nothing that lasts.
    Unix,
}

impl PeerAddress {
    /// The IP address; `None` for a Unix socket. An IPv4-mapped address is returned as IPv4.
    pub const fn ip(self) -> Option<IpAddr> {
        match self {
            Self::Ip(address) => Some(address.ip().to_canonical()),
            Self::Unix => None,
        }
    }

    /// The port; 0 for a Unix socket.
    pub const fn port(self) -> u16 {
        match self {
            Self::Ip(address) => address.port(),
            Self::Unix => 0,
        }
    }

    /// The address without its port, as expressions and the access log show it: `192.0.2.1`, or `unix:` as NGINX writes it.
    pub fn host(self) -> String {
        self.ip().map_or_else(|| "unix:".to_owned(), |ip| ip.to_string())
    }

    /// The address whose share of queues and tables the client takes. All clients of Unix sockets share the unspecified address,
    /// which no other client has.
    pub const fn share(self) -> IpAddr {
        match self.ip() {
            Some(ip) => ip,
            None => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        }
    }
}

impl From<SocketAddr> for PeerAddress {
    fn from(address: SocketAddr) -> Self {
        Self::Ip(address)
    }
}

impl<I: Into<IpAddr>> From<(I, u16)> for PeerAddress {
    fn from(address: (I, u16)) -> Self {
        Self::Ip(address.into())
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix => f.write_str("unix:"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapped_address_is_ipv4_and_a_unix_socket_has_none() {
        let mapped = PeerAddress::from("[::ffff:192.0.2.1]:7".parse::<SocketAddr>().unwrap());
        assert_eq!((mapped.host(), mapped.port()), ("192.0.2.1".to_owned(), 7));
        assert_eq!((PeerAddress::Unix.ip(), PeerAddress::Unix.host()), (None, "unix:".to_owned()));
    }
}
