//! Sockets and byte streams. Enters: addresses and connected sockets. Leaves: any transport as one type of stream. Not here:
//! what the bytes mean.

mod inherited;
mod quic;
mod record_keys;
mod record_layer;
mod shortage;
mod socket;
mod stream;
mod stream_error;
mod tcp;
mod tls_stream;
mod unix;
mod websocket;
mod write_deadline;

pub use inherited::{Handover, Inherited};
pub(crate) use quic::{Incoming, QuicEndpoint, QuicPath, bind_udp};
pub(crate) use record_keys::TrafficSecrets;
pub(crate) use record_layer::RecordLayer;
pub(crate) use shortage::is_own_shortage;
pub(crate) use socket::Socket;
pub(crate) use stream::{Stream, discard_until_closed};
pub(crate) use stream_error::StreamError;
pub(crate) use tcp::{adopt, bind, configure, connect};
pub(crate) use tls_stream::{Leftovers, TlsStream};
pub(crate) use unix::{BoundUnix, adopt_unix, bind_unix, connect_unix};
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use websocket::fuzz_websocket;
pub(crate) use write_deadline::WriteDeadline;
