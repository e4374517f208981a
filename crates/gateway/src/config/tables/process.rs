//! `[runtime]`, `[access_log]` and `[admin]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use portcullis_wire::Disconnect;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{ByteSize, Period, Setting};
use super::bind::Bind;
use super::rates::{self, CountRate, Rate};
use crate::util::suggest::suggest;

/// With less, the gateway would reject everybody.
const MIN_MEMORY: usize = 64 << 20;

/// As the documentation of the keys says.
const MAX_THREADS: usize = 1024;
const MAX_HANDSHAKES: usize = 1 << 16;
const MAX_QUEUE: usize = 100_000;
/// Clients that accept no larger packets are common.
const MAX_REFERENCE: usize = 1024;

/// Settings of the process.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Runtime")]
pub(in crate::config) struct RuntimeTable {
    /// Threads that relay established sessions, of which no more are in use than the messages need, and as many more that connect
    /// clients and end sessions, at a lower priority: 1 to 1024. Takes effect after a restart. Default: the number of cores.
    #[schemars(range(min = 1, max = MAX_THREADS))]
    worker_threads: Option<Setting<usize>>,
    /// The number of TLS handshakes that may be in progress at once, 1 to 65536. Others wait: those of clients that were
    /// connected lately or resume a session come first. A handshake that waits for its client does not count.
    #[schemars(range(min = 1, max = MAX_HANDSHAKES))]
    max_handshakes: Setting<usize>,
    /// The number of handshakes that may wait, 1 to 100000, each for `handshake_timeout` at most. Beyond it, connections are
    /// closed before they cost anything.
    #[schemars(range(min = 1, max = MAX_QUEUE))]
    handshake_queue: Setting<usize>,
    /// Memory of the process (resident, without the kernel's buffers), 64 MiB at least. Above it, new connections are
    /// rejected until it is below nine tenths of it; sessions stay. Default: no limit.
    memory_limit: Option<Setting<ByteSize>>,
    /// The time within which the gateway ends all sessions after SIGTERM, one after another; after SIGUSR2 in its second half.
    drain_timeout: Period,
    /// Sessions that end in a second, from the beginning of a drain: `"100/s"`. What is left after `drain_timeout` ends at once.
    /// Default: as many as it takes.
    drain_pace: Option<Setting<CountRate>>,
    /// What MQTT 5 clients are told in a drain, in DISCONNECT: `shutting_down` (0x8B), `server_moved` (0x9D) or
    /// `use_another_server` (0x9C).
    drain_reason: DrainReason,
    /// The servers that clients should use, separated by spaces: `"gateway-b.example.com:8883"`. Only with `drain_reason` of
    /// `server_moved` or `use_another_server`. Default: clients are not told.
    drain_reference: Option<Setting<String>>,
    /// Log level: `error`, `warn`, `info`, `debug`, `trace`, also by target (`info,portcullis_gateway=debug`). Without a
    /// target it is the level of the gateway's own messages; libraries log up to `info`.
    log: Setting<String>,
    /// `text` or `json` (one object a line), on standard error. Takes effect after a restart.
    log_format: LogFormat,
}

impl Default for RuntimeTable {
    fn default() -> Self {
        Self {
            worker_threads: None,
            max_handshakes: Setting::default_of(64),
            handshake_queue: Setting::default_of(10_000),
            memory_limit: None,
            drain_timeout: Period(Duration::from_secs(30)),
            drain_pace: None,
            drain_reason: DrainReason::ShuttingDown,
            drain_reference: None,
            log: Setting::default_of("info".to_owned()),
            log_format: LogFormat::Text,
        }
    }
}

/// What MQTT 5 clients are told in a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum DrainReason {
    /// 0x8B.
    ShuttingDown,
    /// 0x9D.
    ServerMoved,
    /// 0x9C.
    UseAnotherServer,
}

/// The format of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Plain text.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The access log: one line for each connection, when it ends.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "AccessLog", extend("required" = ["path"]))]
pub(in crate::config) struct AccessLogTable {
    /// File to append to; `-` is standard output. A reload opens it again.
    path: Option<Setting<PathBuf>>,
    /// `combined` (columns, as NGINX writes them) or `json` (one object a line).
    format: AccessLogFormat,
}

/// The format of an access log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AccessLogFormat {
    /// Columns, as NGINX writes them.
    #[default]
    Combined,
    /// One JSON object a line.
    Json,
}

/// The HTTP interface for operators: `/livez`, `/readyz`, `/metrics`, `/jwks.json`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Admin")]
pub(in crate::config) struct AdminTable {
    /// `address:port`, or `unix:PATH`, as `bind` of [[listener]]. The interface has no authentication: use the loopback address or a Unix socket.
    /// Takes effect after a restart.
    bind: Setting<String>,
}

/// Settings of the process.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// `None`: one for each core.
    pub worker_threads: Option<Setting<usize>>,
    /// How many handshakes may be in progress at once.
    pub max_handshakes: usize,
    /// How many more may wait.
    pub handshake_queue: usize,
    /// In bytes.
    pub memory_limit: Option<Setting<usize>>,
    /// How long sessions may continue in a drain.
    pub drain_timeout: Duration,
    /// How many sessions end in a drain, and in what time; `None`: as many as `drain_timeout` takes.
    pub drain_pace: Option<Rate>,
    /// What MQTT 5 clients are told in a drain.
    pub drain_notice: Arc<DrainNotice>,
    /// Log filter directives.
    pub log: String,
    /// The format of log lines.
    pub log_format: LogFormat,
}

/// What MQTT 5 clients are told in a drain.
#[derive(Debug, PartialEq, Eq)]
pub struct DrainNotice {
    /// The reason.
    pub disconnect: Disconnect,
    /// The servers that they should use.
    pub reference: Option<Arc<str>>,
}

impl Default for DrainNotice {
    fn default() -> Self {
        Self { disconnect: Disconnect::ServerShuttingDown, reference: None }
    }
}

impl Process {
    /// The number of threads that relay, and of those that connect clients.
    pub fn threads(&self) -> usize {
        let set = self.worker_threads.as_ref().map(|threads| threads.value);
        set.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// The access log, validated.
#[derive(Clone, Debug)]
pub struct AccessLog {
    /// `-`: standard output.
    pub path: Setting<PathBuf>,
    /// The format of a line.
    pub format: AccessLogFormat,
}

pub(super) fn validate_runtime(table: &RuntimeTable, document: &mut Document) -> Process {
    if let Some(threads) = table.worker_threads.as_ref().filter(|it| !(1..=MAX_THREADS).contains(&it.value)) {
        let hint = "for as many as there are cores, leave the key out";
        let message = format!("`worker_threads` must be between 1 and {MAX_THREADS}");
        document.error(threads, Complaint::new(message).hint(hint));
    }
    let default = RuntimeTable::default();
    for (name, setting, default, max) in [
        ("max_handshakes", &table.max_handshakes, default.max_handshakes, MAX_HANDSHAKES),
        ("handshake_queue", &table.handshake_queue, default.handshake_queue, MAX_QUEUE),
    ] {
        if !(1..=max).contains(&setting.value) {
            let hint = format!("for {}, leave the key out", default.value);
            document.error(setting, Complaint::new(format!("`{name}` must be between 1 and {max}")).hint(hint));
        }
    }
    if let Some(limit) = table.memory_limit.as_ref().filter(|limit| limit.value.0 < MIN_MEMORY) {
        let hint = "for no limit, leave the key out; an idle session takes 5 KB here and 9 KB in the kernel, a handshake 30 KB";
        document.error(limit, Complaint::new("`memory_limit` must be at least \"64MiB\"").hint(hint));
    }
    if let Some(target) = misspelt_target(&table.log) {
        document.error(
            &table.log,
            Complaint::new("unknown target of log levels").hint(format!("did you mean `{target}`?")),
        );
    } else if !is_log_filter(&table.log) {
        let hint = "error, warn, info, debug or trace; also by target: \"info,portcullis_gateway=debug\"";
        document.error(&table.log, Complaint::new(format!("`{}` is not a log level", table.log.value)).hint(hint));
    }
    Process {
        worker_threads: table.worker_threads.clone(),
        max_handshakes: table.max_handshakes.value,
        handshake_queue: table.handshake_queue.value,
        memory_limit: table.memory_limit.as_ref().map(|limit| limit.map(|size| size.0)),
        drain_timeout: table.drain_timeout.0,
        drain_pace: rates::validate_pace(table.drain_pace.as_ref(), document),
        drain_notice: Arc::new(validate_drain_notice(table, document)),
        log: table.log.value.clone(),
        log_format: table.log_format,
    }
}

fn validate_drain_notice(table: &RuntimeTable, document: &mut Document) -> DrainNotice {
    let disconnect = match table.drain_reason {
        DrainReason::ShuttingDown => Disconnect::ServerShuttingDown,
        DrainReason::ServerMoved => Disconnect::ServerMoved,
        DrainReason::UseAnotherServer => Disconnect::UseAnotherServer,
    };
    let reference = table.drain_reference.as_ref().filter(|&reference| {
        let complaint = if table.drain_reason == DrainReason::ShuttingDown {
            let message = "`drain_reference` has no effect with `drain_reason = \"shutting_down\"`";
            Complaint::new(message).hint("set `drain_reason = \"server_moved\"` or \"use_another_server\"")
        } else if reference.is_empty() || reference.len() > MAX_REFERENCE || reference.chars().any(char::is_control) {
            let message = format!("`drain_reference` must be 1 to {MAX_REFERENCE} bytes without control characters");
            Complaint::new(message).hint("for example \"gateway-b.example.com:8883\"")
        } else {
            return true;
        };
        document.error(reference, complaint);
        false
    });
    DrainNotice { disconnect, reference: reference.map(|reference| reference.value.as_str().into()) }
}

/// The target that was meant by a misspelt one of the gateway's own. Of other crates, the names are not known.
fn misspelt_target(text: &str) -> Option<&'static str> {
    const OWN: [&str; 3] = ["portcullis", "portcullis_gateway", "portcullis_registry"];
    let targets = text.split(',').filter_map(|directive| directive.split_once('=')?.0.split("::").next());
    targets.filter(|target| !OWN.contains(target)).find_map(|target| suggest(target, OWN))
}

/// Whether `text` contains only levels, alone or for a target. The filter itself would take a misspelt level for a
/// target.
fn is_log_filter(text: &str) -> bool {
    let levels = ["off", "error", "warn", "info", "debug", "trace"];
    let is_level = |level: &str| levels.contains(&level.to_ascii_lowercase().as_str());
    text.split(',').all(|directive| is_level(directive.split_once('=').map_or(directive, |(_, level)| level)))
}

pub(super) fn validate_admin(table: &AdminTable, document: &mut Document) -> Result<Setting<Bind>, Reported> {
    let bind = Bind::parse(&table.bind, document).map_err(|complaint| document.error(&table.bind, complaint))?;
    if bind.ip().is_some_and(|address| !address.ip().is_loopback()) {
        let message = "the admin interface has no authentication, and this address is not a loopback address";
        document.warning(&table.bind, Complaint::new(message).hint("bind = \"127.0.0.1:9080\""));
    }
    Ok(table.bind.map(|_| bind))
}

pub(super) fn validate_access_log(
    table: &Setting<AccessLogTable>,
    document: &mut Document,
) -> Result<AccessLog, Reported> {
    let hint = "a file, or \"-\" for standard output";
    let path = document.require(table.path.as_ref(), table, "path", hint)?;
    let resolve = |path: &PathBuf| if path == Path::new("-") { path.clone() } else { document.resolve(path) };
    Ok(AccessLog { path: path.map(resolve), format: table.format })
}
