//! What the operator wants of a CONNECT: who is let in, and how the packet is rewritten.

mod connect;
mod token;

pub use connect::{Admission, Replacements, Rewriting};
pub use token::Signer;
