//! The built-in broker, for trying out and for tests: `portcullis-broker`, reached through memory, storing nothing.

use std::sync::LazyLock;

use portcullis_broker::Broker;
use tokio::io::DuplexStream;

/// Bytes on their way between gateway and broker, each direction.
const PIPE: usize = 64 << 10;

/// The process has one: what one session publishes, every other can subscribe to, over reloads.
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
