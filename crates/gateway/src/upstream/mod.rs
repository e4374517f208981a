//! Upstreams, the groups of brokers: load balancing, health and connecting. Enters: a key to hash. Leaves: a connected
//! stream and a lease that counts the session, or the reason for rejecting the client.

mod background;
mod balance;
mod dial;
#[cfg(feature = "embedded-broker")]
mod embedded;
mod endpoint;
mod health;
mod pool;
mod proxy_header;
mod sources;

pub(crate) use background::start;
pub(crate) use dial::Dialed;
pub(crate) use endpoint::Lease;
pub(crate) use pool::Upstream;
