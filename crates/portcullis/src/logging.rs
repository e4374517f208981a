//! Where the gateway's log goes: standard error. A session never waits for it; lines that do not fit are dropped and counted.

use std::io::{self, IsTerminal};

use portcullis_gateway::Process;
use portcullis_gateway::config::tables::LogFormat;
use portcullis_gateway::observe::{LineQueue, LineWriter, Observer};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

/// Applies a level without a target to the gateway's own messages. Those of libraries are logged up to `info` unless a
/// directive names them: at `debug` they quote what they are given, such as the URL of an authentication service.
fn own_level(targets: &Targets) -> Targets {
    let level = targets.default_level().unwrap_or(LevelFilter::OFF);
    let libraries = Targets::new().with_default(level.min(LevelFilter::INFO));
    // The registry's errors are reported by the gateway.
    libraries.with_target("sqlx", LevelFilter::OFF).with_target("portcullis", level).with_targets(targets.iter())
}

/// The gateway's log. Dropping it writes the lines that are still queued.
pub(crate) struct Logging {
    levels: reload::Handle<Targets, Registry>,
    _writer: LineWriter,
}

impl Logging {
    /// Applies the levels of another configuration.
    pub(crate) fn set_levels(&self, directives: &str) {
        if let Err(error) = self.levels.reload(targets(directives)) {
            tracing::error!(%error, "cannot change the log level");
        }
    }
}

fn targets(directives: &str) -> Targets {
    // Loading the configuration has validated the directives.
    own_level(&directives.parse().unwrap_or_default())
}

/// Starts logging.
///
/// # Errors
/// The system allows no more threads.
pub(crate) fn start(process: &Process, observer: &Observer) -> io::Result<Logging> {
    let (queue, writer) = LineQueue::start(io::stderr())?;
    // Set already if logging was started before: the first counter stays.
    let _ = observer.log_dropped.set(queue.lost().clone());
    let (filter, levels) = reload::Layer::new(targets(&process.log));
    let registry = tracing_subscriber::registry().with(filter);
    let format = tracing_subscriber::fmt::layer().with_writer(move || queue.clone());
    match process.log_format {
        LogFormat::Text => registry.with(format.with_ansi(io::stderr().is_terminal())).init(),
        LogFormat::Json => registry.with(format.json().flatten_event(true).with_ansi(false)).init(),
    }
    Ok(Logging { levels, _writer: writer })
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::*;

    #[test]
    fn a_level_without_target_is_of_the_gateways_own_messages() {
        let enabled = |directives: &str, target: &str, level| {
            own_level(&directives.parse().unwrap()).would_enable(target, &level)
        };
        for own in ["portcullis", "portcullis_gateway::tls"] {
            assert!(enabled("debug", own, Level::DEBUG) && !enabled("info", own, Level::DEBUG));
        }
        assert!(!enabled("trace", "hyper_util::client", Level::DEBUG));
        assert!(enabled("trace", "hyper_util::client", Level::INFO));
        assert!(!enabled("warn", "hyper_util::client", Level::INFO));
        assert!(enabled("info,hyper_util=debug", "hyper_util::client", Level::DEBUG));
        assert!(enabled("info,portcullis_gateway=debug", "portcullis_gateway::tls", Level::DEBUG));
        assert!(!enabled("warn,portcullis_gateway=error", "portcullis_gateway::tls", Level::WARN));
    }
}
