//! Sockets: listening, tuning, and any transport as a stream of bytes.

mod listen;
mod stream;

pub use listen::{bind, tune};
pub use stream::{Stream, discard_until_closed};
