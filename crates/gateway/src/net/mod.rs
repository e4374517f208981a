//! Sockets: listening, tuning, and any transport as a stream of bytes.

mod addresses;
mod listen;
mod stream;

pub use addresses::AddressRules;
pub(crate) use addresses::network_of;
pub use listen::{bind, tune};
pub use stream::{Stream, discard_until_closed};
