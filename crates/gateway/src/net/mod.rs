//! Sockets and byte streams. Enters: addresses and connected sockets. Leaves: any transport as one type of stream. Not here:
//! what the bytes mean.

mod stream;
mod tcp;

pub(crate) use stream::{Stream, discard_until_closed};
pub(crate) use tcp::{Socket, bind, tune};
