//! What any module may use: time, the cryptography provider, text, and a map of what is shared while it is in use.

pub(crate) mod clock;
pub mod crypto;
pub(crate) mod suggest;
pub(crate) mod url;
pub(crate) mod weak_map;
