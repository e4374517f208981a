//! Where the gateway's own words go: standard error, without ever making a session wait for it.

use std::io::IsTerminal;

use portcullis_gateway::Process;
use portcullis_gateway::config::tables::LogFormat;
use portcullis_gateway::observe::Observer;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging; what is waiting is written when the guard is dropped.
pub(crate) fn start(process: &Process, observer: &Observer) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).finish(std::io::stderr());
    // Already set only if this was called before, when the first one goes on counting.
    let _ = observer.log_dropped.set(writer.error_counter());
    // Loading has judged the directives.
    let targets: Targets = process.log.parse().unwrap_or_default();
    let registry = tracing_subscriber::registry().with(targets);
    let format = tracing_subscriber::fmt::layer().with_writer(writer);
    match process.log_format {
        LogFormat::Text => registry.with(format.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(format.json().flatten_event(true).with_ansi(false)).init(),
    }
    guard
}
