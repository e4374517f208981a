//! Bytes between a client and its broker once CONNECT is done.

mod raw;

pub use raw::{Ends, relay};
