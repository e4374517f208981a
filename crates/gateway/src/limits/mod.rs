//! What one client may take of what all share.

mod addresses;
mod bans;

pub use addresses::AddressRules;
pub(crate) use addresses::network_of;
pub use bans::Bans;
pub(crate) use bans::Memories;
