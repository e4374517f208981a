//! Connecting to a broker by TCP, TLS or memory. Enters: a key to hash. Leaves: a stream and a lease, or the reason for
//! rejecting the client.

use std::fmt::{Display, Write as _};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::balance::Choice;
use super::endpoint::{Endpoint, Lease, Target};
use super::pool::Upstream;
use super::proxy_header;
use super::sources::SourcePermit;
use crate::net::{self, Socket, Stream, is_own_shortage};
use crate::outcome::{RAISE_OPEN_FILES, Reject, note_detail};
use crate::peer::Peer;

/// The limit of what is noted about servers that were tried, in bytes.
const MAX_DETAILS: usize = 512;
/// From this percentage of the local ports on, few are left.
const FEW_PORTS: u64 = 80;
/// A client waits at most this many times `connect_timeout`, however many servers are tried.
const MAX_CONNECT_TIMEOUTS: u32 = 3;

/// A connection to a broker, with nothing sent on it.
#[derive(Debug)]
pub(crate) struct Dialed {
    /// The connection.
    pub stream: Stream,
    /// The name of the upstream.
    pub(crate) upstream: Arc<str>,
    /// The server's label in logs.
    pub server: Arc<str>,
    /// The session's permit on the server.
    pub lease: Lease,
}

impl Upstream {
    /// Connects to the first server, in the order of the balancing method, that accepts the connection. `client` and
    /// `peer`: whose turn is waited for, if there are more than `max_connect_rate`, and whom the header of the PROXY protocol
    /// describes. A client that leaves meanwhile takes no turn: its CONNECT would end a session that it has opened since.
    ///
    /// # Errors
    /// [`Reject::UpstreamUnreachable`], [`Reject::UpstreamFull`], [`Reject::GatewayExhausted`] or [`Reject::ClientLeft`].
    pub(crate) async fn dial(&self, key: &[u8], client: &Stream, peer: &Peer) -> Result<Dialed, Reject> {
        let preface = self.proxy_protocol.map(|version| proxy_header::of_client(version, peer, client.local_address()));
        let deadline = Instant::now() + self.connect_timeout * MAX_CONNECT_TIMEOUTS;
        let (mut is_full, mut is_exhausted) = (false, false);
        // Of each server: the access log shows all.
        let mut details = String::new();
        let mut note = |endpoint: &Endpoint, why: &dyn Display| {
            if details.len() < MAX_DETAILS {
                let separator = if details.is_empty() { "" } else { "; " };
                let _ = write!(details, "{separator}{}: {why}", endpoint.label);
                note_detail(&details);
            }
        };
        let candidates = self.candidates(Choice { key });
        if candidates.is_empty() {
            note_detail("no server takes sessions: all have `drain` or `down`, or no name has an address");
        }
        for endpoint in candidates {
            if endpoint.is_full() {
                note(&endpoint, &"max_connections");
                is_full = true;
                continue;
            }
            if let Some(rate) = self.max_connect_rate {
                let until = deadline.min(Instant::now() + self.connect_timeout);
                let turn = endpoint.may_connect(rate, peer.address.share(), until);
                if !client.unless_left(turn).await.ok_or(Reject::ClientLeft)? {
                    note(&endpoint, &"max_connect_rate");
                    is_full = true;
                    continue;
                }
            }
            // Only now: a session that waits takes no place of those that are connected. Others may have taken the last one.
            let Some(lease) = endpoint.lease() else {
                note(&endpoint, &"max_connections");
                is_full = true;
                continue;
            };
            let health = &endpoint.state.health;
            let until = deadline.min(Instant::now() + self.connect_timeout);
            let error = match tokio::time::timeout_at(until, self.connect(&endpoint, preface.as_deref())).await {
                Ok(Ok((stream, source))) => {
                    self.warn_of_few_ports(&endpoint, source.as_ref());
                    health.succeeded(Instant::now());
                    endpoint.state.metrics.connected.inc();
                    return Ok(Dialed {
                        stream,
                        upstream: Arc::clone(&self.name),
                        server: Arc::clone(&endpoint.label),
                        lease: lease.from(source),
                    });
                }
                Ok(Err(error)) => error,
                Err(_) => timed_out("`connect_timeout` of [[upstream]]", self.connect_timeout),
            };
            if is_own_shortage(&error) {
                if let Some(suppressed) = self.shortages.permit() {
                    let (server, hint) = (&*endpoint.label, remedy_of_shortage(&error));
                    tracing::error!(upstream = self.name(), server, %error, suppressed, hint, "the gateway cannot open connections to brokers");
                }
                // A server at another address may have local ports left.
                is_exhausted = true;
                note(&endpoint, &error);
                continue;
            }
            note(&endpoint, &error);
            let was_up = health.is_up(Instant::now());
            endpoint.state.metrics.failed.inc();
            drop(lease);
            health.failed(Instant::now());
            // Log only the failure that marks the server as down; further ones add nothing.
            if was_up && !health.is_up(Instant::now()) {
                tracing::warn!(upstream = self.name(), server = &*endpoint.label, %error, "cannot connect to the server");
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        Err(match (is_exhausted, is_full) {
            (true, _) => Reject::GatewayExhausted,
            (_, true) => Reject::UpstreamFull,
            _ => Reject::UpstreamUnreachable,
        })
    }

    /// Opens a connection for a health check; the caller sets the deadline.
    pub(super) async fn connect_for_check(&self, endpoint: &Endpoint) -> io::Result<Stream> {
        let preface = self.proxy_protocol.map(proxy_header::of_gateway);
        self.connect(endpoint, preface.as_deref()).await.map(|(stream, _)| stream)
    }

    /// Opens a connection to one server; the caller sets the deadline. `preface` is sent before TLS.
    async fn connect(&self, endpoint: &Endpoint, preface: Option<&[u8]>) -> io::Result<(Stream, Option<SourcePermit>)> {
        let mut source = None;
        let mut socket = match &endpoint.target {
            Target::Embedded => return Ok((embedded()?, None)),
            Target::Unix(path) => Socket::Unix(net::connect_unix(path).await?),
            Target::Ip(address) => {
                source = self.source_for(endpoint, *address)?;
                let local = source.as_ref().map(|source| source.address);
                Socket::Tcp(net::connect(*address, local, self.tls.is_none()).await?)
            }
        };
        if let Some(preface) = preface {
            socket.write_all(preface).await?;
        }
        match &self.tls {
            None => Ok((Stream::Plain(socket), source)),
            Some(tls) => Ok((Stream::ToBroker(Box::new(tls.connect(&endpoint.host, socket).await?)), source)),
        }
    }

    /// The local address for a connection to `address`; `None`: the system chooses.
    fn source_for(&self, endpoint: &Endpoint, address: SocketAddr) -> io::Result<Option<SourcePermit>> {
        if self.sources.is_empty() {
            return Ok(None);
        }
        let of_family = self.sources.iter().filter(|source| source.is_ipv4() == address.is_ipv4());
        // The system's choice could be an address that the broker does not accept.
        let none = || io::Error::new(io::ErrorKind::InvalidInput, "no address in `source_addresses` is of its family");
        endpoint.state.sources.take(of_family).map(Some).ok_or_else(none)
    }

    /// Warns before the local ports for a server are used up.
    fn warn_of_few_ports(&self, endpoint: &Endpoint, source: Option<&SourcePermit>) {
        let Target::Ip(_) = endpoint.target else { return };
        let used = source.map_or_else(|| endpoint.active(), SourcePermit::count);
        let Some(ports) = self.local_ports.filter(|ports| leaves_few_ports(used, *ports)) else { return };
        if let Some(suppressed) = self.few_ports.permit() {
            let (server, source) = (&*endpoint.label, source.map(|source| source.address.to_string()));
            let hint = "add addresses to `source_addresses`, widen `net.ipv4.ip_local_port_range`, or add servers";
            tracing::warn!(
                upstream = self.name(),
                server,
                source,
                used,
                ports,
                suppressed,
                hint,
                "few local ports are left for connections to a server"
            );
        }
    }
}

/// Whether so many connections from one local address to one server leave few of its ports.
const fn leaves_few_ports(used: u32, ports: u64) -> bool {
    used as u64 * 100 >= ports * FEW_PORTS
}

/// What an operator can do about an error for which [`is_own_shortage`] is true.
fn remedy_of_shortage(error: &io::Error) -> &'static str {
    match Errno::from_io_error(error) {
        Some(Errno::ADDRNOTAVAIL | Errno::ADDRINUSE | Errno::AGAIN) => {
            "no local port is free for this server: add addresses to `source_addresses`, or widen `net.ipv4.ip_local_port_range`"
        }
        Some(Errno::MFILE | Errno::NFILE) => RAISE_OPEN_FILES,
        _ => "the kernel has too little memory for sockets: lower `max_connections`, or add memory",
    }
}

/// The error of what took longer than the value of a configuration key allows.
pub(super) fn timed_out(key: &str, value: Duration) -> io::Error {
    let value = humantime::format_duration(value);
    io::Error::new(io::ErrorKind::TimedOut, format!("timed out: {key} is {value}"))
}

#[cfg_attr(
    feature = "embedded-broker",
    expect(clippy::unnecessary_wraps, reason = "without the feature there is only the error")
)]
fn embedded() -> io::Result<Stream> {
    #[cfg(feature = "embedded-broker")]
    return Ok(Stream::Memory(super::embedded::connect()));
    #[cfg(not(feature = "embedded-broker"))]
    Err(io::Error::other("built without the embedded broker"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn few_ports_are_left_from_four_fifths_on() {
        for (used, ports, expected) in [(22_585, 28_232, false), (22_586, 28_232, true), (0, 0, true), (4, 5, true)] {
            assert_eq!(leaves_few_ports(used, ports), expected, "{used} of {ports}");
        }
    }
}
