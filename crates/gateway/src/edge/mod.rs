//! The network edge. Enters: listening sockets. Leaves: a byte stream and the peer at its other end. Not here: MQTT.

mod accept;

pub(crate) use accept::{Accepted, Acceptor, Arrived, Endpoint, Transport};
