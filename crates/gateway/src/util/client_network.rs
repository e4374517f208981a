//! Client networks: what shares a turn in a queue, or a share of a table. Enters: an address. Leaves: its network.

use std::net::IpAddr;

/// An IPv4 address, or the first 48 bits of an IPv6 address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum ClientNetwork {
    V4([u8; 4]),
    V6([u16; 3]),
}

impl ClientNetwork {
    /// The network of an address.
    pub(crate) fn of(address: IpAddr) -> Self {
        path_of(address).0
    }
}

/// The network of an address, and its /56 and /64 in there.
pub(crate) fn path_of(address: IpAddr) -> (ClientNetwork, (u16, (u16, ()))) {
    match address.to_canonical() {
        IpAddr::V4(address) => (ClientNetwork::V4(address.octets()), (0, (0, ()))),
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            (ClientNetwork::V6([a, b, c]), (d >> 8, (d, ())))
        }
    }
}
