//! Groups of brokers: which one a session goes to, whether it is there, and the way to it. Enters: a key to hash.
//! Leaves: a connected stream and a lease that counts, or the reason there is none.

mod balance;
mod dial;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod health;
mod pool;

pub use dial::Dialed;
pub use pool::{Lease, Upstream};
