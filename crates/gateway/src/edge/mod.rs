//! The network edge. Enters: listening sockets. Leaves: a byte stream and the peer at its other end. Not here: MQTT.

mod accept;
mod proxy_header;
mod proxy_protocol;
mod upgrade;

pub(crate) use accept::{Accepted, Acceptor, Arrived, Endpoint, Secure, SocketSettings, Transport};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use proxy_header::fuzz as fuzz_proxy_header;
pub(crate) use proxy_header::{PROXY_WITHOUT_KEY, is_proxy_header};
pub(crate) use proxy_protocol::ProxyProtocol;
pub(crate) use upgrade::Upgrade;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use upgrade::fuzz as fuzz_upgrade;
