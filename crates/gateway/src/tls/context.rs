//! What a listener's TLS shares with other listeners and with the configuration before a reload.

use std::sync::Arc;

use super::keys::KeyStore;
use super::resumption::ResumptionStore;
use crate::devices::Replica;
use crate::pki::RevocationStore;

/// The TLS state of a listener that survives reloads.
#[derive(Debug, Default)]
pub(crate) struct ListenerState {
    pub(super) resumption: Arc<ResumptionStore>,
    pub(super) keys: Arc<KeyStore>,
}

/// What opening a listener's TLS needs besides its settings.
#[derive(Clone, Debug)]
pub(crate) struct Context<'a> {
    /// The listener's name.
    pub(crate) listener: &'a str,
    pub(crate) revocation: &'a Arc<RevocationStore>,
    pub(crate) state: Arc<ListenerState>,
    /// The device registry, if there is one.
    pub(crate) registry: Option<&'a Arc<Replica>>,
}
