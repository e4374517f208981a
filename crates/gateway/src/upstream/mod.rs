//! Groups of brokers: which one a session goes to, whether it is there, and the way to it. Enters: a key to hash.
//! Leaves: a connected stream and a lease that counts, or the reason there is none.

mod background;
mod balance;
mod dial;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod endpoint;
mod health;
mod pool;

pub(crate) use background::start;
pub use dial::Dialed;
pub use endpoint::Lease;
pub use pool::Upstream;
