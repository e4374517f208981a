//! Where the gateway's log goes: standard error. A session never waits for it; lines that do not fit are dropped and counted.

use std::io::IsTerminal;

use portcullis_gateway::Process;
use portcullis_gateway::config::tables::LogFormat;
use portcullis_gateway::observe::Observer;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Starts logging. Dropping the guard writes the lines that are still queued.
pub(crate) fn start(process: &Process, observer: &Observer) -> WorkerGuard {
    let (writer, guard) = NonBlockingBuilder::default().lossy(true).finish(std::io::stderr());
    // Set already if logging was started before: the first counter stays.
    let _ = observer.log_dropped.set(writer.error_counter());
    // Loading the configuration has validated the directives.
    let targets: Targets = process.log.parse().unwrap_or_default();
    let registry = tracing_subscriber::registry().with(targets);
    let format = tracing_subscriber::fmt::layer().with_writer(writer);
    match process.log_format {
        LogFormat::Text => registry.with(format.with_ansi(std::io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(format.json().flatten_event(true).with_ansi(false)).init(),
    }
    guard
}
