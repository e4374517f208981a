//! The access log: one line per connection, in two formats. Enters: a connection that has ended. Leaves: a line. No byte
//! that a client chooses can end the line or look like another field. Writing never waits: if the disk is too slow, lines
//! are dropped and counted.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use chrono::{DateTime, Local, Timelike};
use serde::Serialize;

use super::info::SessionInfo;
use super::line_queue::{LineQueue, LineWriter};
use crate::outcome::{Outcome, Stage};
use crate::peer::PeerAddress;

/// The format of a line.
pub use crate::config::tables::AccessLogFormat as Format;

/// A connection that has ended.
pub(super) struct End<'a> {
    pub(super) info: &'a SessionInfo,
    pub(super) outcome: Outcome,
}

/// An open access log.
#[derive(Debug)]
pub struct AccessLog {
    format: Format,
    queue: LineQueue,
    /// Dropping it writes the waiting lines.
    _writer: LineWriter,
}

impl AccessLog {
    /// Opens an access log. `-` is standard output; any other path is a file to append to.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn open(path: &Path, format: Format) -> io::Result<Self> {
        if path == Path::new("-") {
            return Self::to(io::stdout(), format);
        }
        Self::to(OpenOptions::new().create(true).append(true).open(path)?, format)
    }

    fn to(writer: impl Write + Send + 'static, format: Format) -> io::Result<Self> {
        let (queue, writer) = LineQueue::start(Reporting { writer, has_failed: false })?;
        Ok(Self { format, queue, _writer: writer })
    }

    /// The number of lines lost because the disk was too slow or full.
    pub fn dropped(&self) -> u64 {
        self.queue.lost().count()
    }

    pub(super) fn write(&self, end: &End<'_>) {
        let line = line(self.format, end, Local::now());
        // Never fails: if the queue is full, the line is dropped and counted.
        let _ = self.queue.clone().write_all(line.as_bytes());
    }
}

/// Logs the first line that cannot be written.
struct Reporting<W> {
    writer: W,
    has_failed: bool,
}

impl<W: Write> Write for Reporting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes).inspect_err(|error| {
            if error.kind() != io::ErrorKind::Interrupted && !std::mem::replace(&mut self.has_failed, true) {
                tracing::error!(%error, "cannot write the access log; lines are lost");
            }
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

fn line(format: Format, end: &End<'_>, now: DateTime<Local>) -> String {
    let mut line = match format {
        Format::Combined => combined(end, now),
        Format::Json => json(end, now),
    };
    line.push('\n');
    line
}

fn combined(end: &End<'_>, now: DateTime<Local>) -> String {
    let End { info, outcome } = end;
    let (received, sent) = info.bytes();
    let mut line = String::with_capacity(160);
    let result = write!(
        line,
        "{} [{}] {} {} {} {} {} {} {}",
        info.address().host(),
        local_time(now),
        info.protocol.label(),
        outcome.status(),
        received,
        sent,
        info.upstream().map_or("-", |upstream| &*upstream.server),
        Escaped(info.client_id().unwrap_or_default()),
        outcome.label(),
    );
    debug_assert!(result.is_ok(), "writing to a String cannot fail");
    line
}

/// The time in the combined format. Formatted once a second in each thread: it costs more than the rest of the line.
fn local_time(now: DateTime<Local>) -> String {
    thread_local! {
        static LAST: RefCell<(DateTime<Local>, String)> = RefCell::default();
    }
    let second = now.with_nanosecond(0).unwrap_or(now);
    LAST.with_borrow_mut(|(time, text)| {
        // The offset may have changed, at a time that occurs twice.
        if *time != second || time.offset() != second.offset() {
            (*time, *text) = (second, second.format("%d/%b/%Y:%H:%M:%S %z").to_string());
        }
        text.clone()
    })
}

/// A field of the combined format. Everything but printable ASCII is written as `\xHH`, and so are blanks, quotes and the
/// backslash. An empty field is `-`; a field of one `-` is escaped, so that it cannot be taken for an empty one.
struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            "" => return f.write_char('-'),
            "-" => return f.write_str("\\x2D"),
            _ => {}
        }
        for byte in self.0.bytes() {
            match byte {
                b'"' | b'\\' => write!(f, "\\x{byte:02X}")?,
                b'!'..=b'~' => f.write_char(char::from(byte))?,
                _ => write!(f, "\\x{byte:02X}")?,
            }
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct JsonLine<'a> {
    time: String,
    connection: u64,
    remote_addr: String,
    remote_port: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer_addr: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_cn: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    proxy_id: Option<&'a str>,
    listener: &'a str,
    protocol: &'a str,
    status: u16,
    reason: &'a str,
    detail: Option<&'a str>,
    stage: &'a str,
    blame: &'a str,
    bytes_received: u64,
    bytes_sent: u64,
    denied: u64,
    delayed: u64,
    upstream_addr: Option<&'a str>,
    client_id: Option<&'a str>,
    username: Option<&'a str>,
    mqtt_version: Option<u8>,
    tls_version: Option<&'a str>,
    tls_resumed: Option<bool>,
    cert_subject: Option<&'a str>,
    cert_serial: Option<&'a str>,
    tls_identity: Option<&'a str>,
    authenticator: Option<&'a str>,
    connect_ms: Option<f64>,
    duration_ms: f64,
}

/// The stage in which a connection ended. What closes sessions may also close a connection that is not a session yet.
fn stage(outcome: Outcome, info: &SessionInfo) -> Stage {
    match outcome {
        Outcome::Rejected(reject) => reject.stage(),
        Outcome::Closed(reason) => reason.stage().min(info.stage()),
    }
}

fn json(end: &End<'_>, now: DateTime<Local>) -> String {
    let milliseconds = |duration: std::time::Duration| (duration.as_secs_f64() * 1e6).round() / 1e3;
    let End { info, outcome } = end;
    let (bytes_received, bytes_sent) = info.bytes();
    let identity = info.identity();
    let line = JsonLine {
        time: now.to_rfc3339_opts(chrono::SecondsFormat::Millis, false),
        connection: info.id,
        remote_addr: info.address().host(),
        remote_port: info.address().port(),
        peer_addr: Some(info.socket()).filter(|socket| *socket != info.address()).map(PeerAddress::host),
        proxy_cn: info.proxy().and_then(|proxy| proxy.cn.as_deref()),
        proxy_id: info.proxy().and_then(|proxy| proxy.unique_id.as_deref()),
        listener: &info.listener,
        protocol: info.protocol.label(),
        status: outcome.status(),
        reason: outcome.label(),
        detail: info.detail(),
        stage: stage(*outcome, info).label(),
        blame: outcome.blame().label(),
        bytes_received,
        bytes_sent,
        denied: info.denied(),
        delayed: info.delayed(),
        upstream_addr: info.upstream().map(|upstream| &*upstream.server),
        client_id: info.client_id(),
        username: info.username(),
        mqtt_version: info.connect().map(|connect| connect.version as u8),
        tls_version: info.tls().map(|tls| tls.version),
        tls_resumed: info.tls().map(|tls| tls.resumed),
        cert_subject: identity.cert_subject,
        cert_serial: identity.cert_serial,
        tls_identity: identity.key,
        authenticator: info.authenticator(),
        connect_ms: info.upstream().and_then(|upstream| upstream.connected_after.get().copied()).map(milliseconds),
        duration_ms: milliseconds(info.opened.elapsed()),
    };
    // Cannot fail: the line has only strings, numbers and nulls.
    serde_json::to_string(&line).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tables::Protocol;
    use crate::outcome::{CloseReason, Reject};
    use chrono::TimeZone;

    fn info(client_id: &str) -> std::sync::Arc<SessionInfo> {
        let info = SessionInfo::new(1, "devices".into(), Protocol::Tls, ([192, 0, 2, 7], 49152).into());
        info.set_connect(client_id, None, portcullis_wire::Version::V5);
        info
    }

    fn at() -> DateTime<Local> {
        Local.with_ymd_and_hms(2026, 11, 22, 3, 4, 5).unwrap()
    }

    #[test]
    fn combined_has_the_nine_columns_of_nginx() {
        let info = info("thing001");
        info.set_server("brokers".into(), "127.0.0.1:1883".into());
        info.count_bytes(120, 30);
        let end = End { info: &info, outcome: Outcome::Closed(CloseReason::Ok) };
        let line = line(Format::Combined, &end, at());
        let zone = at().format("%z");
        assert_eq!(
            line,
            format!("192.0.2.7 [22/Nov/2026:03:04:05 {zone}] TLS 200 120 30 127.0.0.1:1883 thing001 ok\n")
        );
    }

    #[test]
    fn the_stage_is_how_far_the_connection_came() {
        let stage = |info: &SessionInfo, outcome| {
            let line = line(Format::Json, &End { info, outcome }, at());
            serde_json::from_str::<serde_json::Value>(&line).unwrap()["stage"].as_str().unwrap().to_owned()
        };
        let info = SessionInfo::new(1, "devices".into(), Protocol::Tls, ([192, 0, 2, 7], 49152).into());
        let drained = Outcome::Closed(CloseReason::Drained);
        assert_eq!(stage(&info, drained), "handshake");
        info.set_peer(&crate::peer::Peer::plain(info.address()));
        assert_eq!(stage(&info, drained), "connect");
        info.set_connect("a", None, portcullis_wire::Version::V5);
        assert_eq!(stage(&info, Outcome::Closed(CloseReason::CertificateRevoked)), "admit");
        assert_eq!(stage(&info, Outcome::Rejected(Reject::UpstreamUnreachable)), "upstream");
        info.set_server("brokers".into(), "127.0.0.1:1883".into());
        assert_eq!(stage(&info, drained), "upstream");
        info.set_connected();
        assert_eq!(stage(&info, drained), "relay");
        assert_eq!(stage(&info, Outcome::Closed(CloseReason::UpstreamRefused)), "upstream");
    }

    #[test]
    fn no_client_can_forge_a_line_or_a_field() {
        for hostile in
            ["a\nb", "a 200 0 0 - x ok\r\n", "a\u{2028}b", "a\u{1b}[2Jb", "a\\x0Ab", "a\"b", "a\tb", "ä\u{85}"]
        {
            let info = info(hostile);
            let outcome = Outcome::Rejected(Reject::IdentityMismatch);
            let end = End { info: &info, outcome };
            for format in [Format::Combined, Format::Json] {
                let line = line(format, &end, at());
                assert_eq!(line.matches(['\n', '\r']).count(), 1, "{line:?}");
                assert!(line.trim_end().bytes().all(|byte| byte >= b' ' && byte != 0x7f), "{line:?}");
                match format {
                    Format::Combined => assert_eq!(line.split(' ').count(), 10, "{line:?}"),
                    Format::Json => {
                        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
                        assert_eq!(value["client_id"], hostile, "nothing is lost");
                    }
                }
            }
        }
        assert_eq!(Escaped("-").to_string(), "\\x2D");
        assert_eq!(Escaped("").to_string(), "-");
    }
}
