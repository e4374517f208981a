//! The network edge. Enters: listening sockets. Leaves: a byte stream and the peer at its other end. Never here: MQTT.

mod accept;
mod stream;
mod tcp;

pub use accept::{Accepted, Acceptor, Arrived, Endpoint, Transport};
pub use stream::{Stream, discard_until_closed};
pub use tcp::{Socket, bind, tune};
