//! The operator's policy for CONNECT: which clients are admitted, and how the packet is rewritten.

mod connect;
mod token;

pub use connect::{Admission, Replacements, Rewriting};
pub use token::Signer;
