//! The operator's policy for CONNECT: which clients are admitted, and how the packet is rewritten.

mod connect;
mod token;

pub(crate) use connect::{Admission, Rewriting};
pub(crate) use token::Signer;
