//! Limits on who may connect, how often, and how many at once. Enters: an address, a client, an event. Leaves: whether
//! it is refused, or a permit that is given back when dropped. Nothing here waits or touches a socket.

mod addresses;
mod bans;
mod permits;
mod window;

pub use addresses::AddressRules;
pub(crate) use addresses::network_of;
pub use bans::Bans;
pub(crate) use bans::Memories;
pub(crate) use permits::{Permit, Permits};
