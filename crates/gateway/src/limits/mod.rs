//! Limits on which clients may connect, how often, how many at once, within how much memory, and in which order they wait.
//! Enters: an address, a client ID, an event. Leaves: a rejection, or a permit or turn that is released when dropped. Not here:
//! sockets, and what is done during the turn.

mod addresses;
mod bans;
mod bucket;
mod connections;
mod descriptors;
mod fair;
mod handshakes;
mod memory;
mod paced;
mod pending;
mod permits;
mod window;

pub(crate) use addresses::AddressRules;
pub(crate) use bans::BanCounters;
pub(crate) use bans::Bans;
pub(crate) use bucket::Bucket;
pub(crate) use connections::{AddressPermit, AllConnectionCounts, ConnectionLimits};
pub(crate) use descriptors::{
    ADMIN_CONNECTIONS, Descriptors, PER_RELAY_THREAD, needed_descriptors, possible_connections,
};
pub(crate) use fair::{FairSlots, Slot};
pub(crate) use handshakes::{Handshakes, RecentClients, TooManyHandshakes, Turn};
pub(crate) use memory::{MemoryGuard, resident_memory};
pub(crate) use paced::{Paced, Tokens};
pub(crate) use pending::{Fill, Pending, PendingPermit, TooManyBytes};
pub(crate) use permits::{Permit, Permits};
