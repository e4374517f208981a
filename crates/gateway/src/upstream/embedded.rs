//! The embedded broker, for evaluation and tests: `portcullis-broker`, connected through memory. It stores nothing.

use std::sync::LazyLock;

use portcullis_broker::Broker;
use tokio::io::DuplexStream;

/// The buffer between gateway and broker, in bytes per direction.
const PIPE: usize = 64 << 10;

/// One per process, so that all sessions share topics, also across reloads.
static BROKER: LazyLock<Broker> = LazyLock::new(Broker::new);

/// Opens a connection to the broker; the first one starts it.
pub(super) fn connect() -> DuplexStream {
    let (ours, theirs) = tokio::io::duplex(PIPE);
    tokio::spawn(async move {
        if let Err(error) = BROKER.serve(theirs).await {
            tracing::debug!(%error, "embedded broker ended a session");
        }
    });
    ours
}
