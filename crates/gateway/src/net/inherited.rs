//! Listening sockets that one process passes to another: systemd to a gateway by the protocol of sd_listen_fds(3), and a gateway to
//! the one that replaces it by the same variables, without `LISTEN_PID`, and with a datagram socket behind each UDP socket. Enters: the descriptors that the environment names. Leaves: sockets by their addresses.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use command_fds::{CommandFdExt as _, FdMapping};
use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;

use super::quic::{Mark, QuicPredecessor};

/// The first descriptor that is passed [sd_listen_fds(3)].
const FIRST: i32 = 3;
/// No service has as many sockets.
const MAX_DESCRIPTORS: usize = 4096;
/// The name of sockets that a gateway has opened, and not systemd: their files are removed when the last gateway stops.
const OWN: &str = "portcullis";

/// Listening sockets for the process that replaces this one.
#[derive(Debug, Default)]
pub struct Handover {
    descriptors: Vec<OwnedFd>,
    names: Vec<String>,
}

impl Handover {
    /// Adds a socket. `is_own`: a gateway has opened it.
    pub(crate) fn add(&mut self, descriptor: OwnedFd, is_own: bool) {
        self.descriptors.push(descriptor);
        self.names.push(if is_own { OWN } else { "inherited" }.to_owned());
    }

    /// Adds a UDP socket, and the one by which the process passes on what is for connections of this one.
    pub(super) fn add_udp(&mut self, socket: OwnedFd, pass_on: OwnedFd) {
        self.add(socket, true);
        self.descriptors.push(pass_on);
        self.names.push(Mark::own().name());
    }

    /// Lets a command start with the sockets. They take the descriptors from 3 on.
    pub fn pass_to(self, command: &mut Command) {
        let names = self.names.join(":");
        let count = self.descriptors.len().to_string();
        command.env("LISTEN_FDS", count).env("LISTEN_FDNAMES", names).env_remove("LISTEN_PID");
        let mappings = self.descriptors.into_iter().zip(FIRST..);
        let mappings = mappings.map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
        // Fails if two have the same number.
        let _ = command.fd_mappings(mappings);
    }
}

/// Inherited sockets, until a listener takes them.
#[derive(Debug, Default)]
pub struct Inherited {
    tcp: Vec<(SocketAddr, TcpListener)>,
    unix: Vec<InheritedUnix>,
    udp: Vec<(SocketAddr, InheritedUdp)>,
}

/// A UDP socket, inherited or new.
#[derive(Debug)]
pub(crate) struct InheritedUdp {
    pub(super) socket: UdpSocket,
    /// A gateway whose connections go on.
    pub(super) predecessor: Option<QuicPredecessor>,
}

impl From<UdpSocket> for InheritedUdp {
    fn from(socket: UdpSocket) -> Self {
        Self { socket, predecessor: None }
    }
}

/// An inherited Unix socket.
#[derive(Debug)]
pub(crate) struct InheritedUnix {
    path: PathBuf,
    pub(crate) listener: UnixListener,
    /// Another gateway has opened it.
    pub(crate) is_own: bool,
}

impl Inherited {
    /// The sockets that were passed to this process. Call it once, before the process has other threads: it removes variables from the
    /// environment. `is_replacement`: the parent is a gateway that this process replaces; systemd also sets `LISTEN_PID`.
    ///
    /// # Errors
    /// A descriptor is not a listening socket, or `LISTEN_FDS` is not a number.
    pub fn from_environment(is_replacement: bool) -> io::Result<Self> {
        let count = std::env::var("LISTEN_FDS").ok();
        let is_addressed = is_replacement || std::env::var_os("LISTEN_PID").is_some();
        let Some(count) = count.filter(|_| is_addressed) else { return Ok(Self::default()) };
        if !count.parse::<usize>().is_ok_and(|count| count <= MAX_DESCRIPTORS) {
            return Err(invalid(&format!("LISTEN_FDS is not a number up to {MAX_DESCRIPTORS}")));
        }
        let mut descriptors = ListenFd::from_env();
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let names = names.split(':').map(Some).chain(std::iter::repeat(None));
        let mut inherited = Self::default();
        for (index, name) in (0..descriptors.len()).zip(names) {
            inherited.take(&mut descriptors, index, name.unwrap_or_default()).map_err(|error| {
                let message = format!("descriptor {} of LISTEN_FDS cannot be used: {error}", FIRST as usize + index);
                io::Error::new(error.kind(), message)
            })?;
        }
        Ok(inherited)
    }

    fn take(&mut self, descriptors: &mut ListenFd, index: usize, name: &str) -> io::Result<()> {
        let is_own = name == OWN;
        if let Ok(Some(listener)) = descriptors.take_tcp_listener(index) {
            check_listening(socket_acceptconn(&listener))?;
            listener.set_nonblocking(true)?;
            self.tcp.push((listener.local_addr()?, listener));
        } else if let Ok(Some(listener)) = descriptors.take_unix_listener(index) {
            check_listening(socket_acceptconn(&listener))?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            let path = address.as_pathname().ok_or_else(|| invalid("it is a Unix socket without a path"))?;
            self.unix.push(InheritedUnix { path: std::path::absolute(path)?, listener, is_own });
        } else if let Ok(Some(socket)) = descriptors.take_udp_socket(index) {
            self.udp.push((socket.local_addr()?, socket.into()));
        } else if let (Some(mark), Ok(Some(socket))) = (Mark::of_name(name), descriptors.take_unix_datagram(index)) {
            let (_, udp) = self.udp.last_mut().ok_or_else(|| invalid("it belongs to no UDP socket"))?;
            udp.predecessor = Some(QuicPredecessor { mark, socket });
        } else {
            return Err(invalid("it is neither TCP nor UDP nor a Unix stream socket"));
        }
        Ok(())
    }

    /// The listening TCP socket of this address. Port 0 stands for any port of the IP address: ask for it after all others.
    pub(crate) fn take_tcp(&mut self, address: SocketAddr) -> Option<TcpListener> {
        take(&mut self.tcp, address)
    }

    /// The UDP socket of this address. As [`take_tcp`](Self::take_tcp).
    pub(crate) fn take_udp(&mut self, address: SocketAddr) -> Option<InheritedUdp> {
        take(&mut self.udp, address)
    }

    /// The listening Unix socket of this path.
    pub(crate) fn take_unix(&mut self, path: &Path) -> Option<InheritedUnix> {
        let path = std::path::absolute(path).ok()?;
        let position = self.unix.iter().position(|socket| socket.path == path)?;
        Some(self.unix.remove(position))
    }

    /// The addresses of the sockets that nobody has taken.
    pub(crate) fn unused(&self) -> Vec<String> {
        let tcp = self.tcp.iter().map(|(address, _)| format!("{address} (TCP)"));
        let udp = self.udp.iter().map(|(address, _)| format!("{address} (UDP)"));
        tcp.chain(udp).chain(self.unix.iter().map(|socket| format!("unix:{}", socket.path.display()))).collect()
    }
}

fn take<S>(sockets: &mut Vec<(SocketAddr, S)>, address: SocketAddr) -> Option<S> {
    let is_wanted = |bound: &SocketAddr| *bound == address || (address.port() == 0 && bound.ip() == address.ip());
    let position = sockets.iter().position(|(bound, _)| is_wanted(bound))?;
    Some(sockets.remove(position).1)
}

fn check_listening(is_listening: rustix::io::Result<bool>) -> io::Result<()> {
    if is_listening? { Ok(()) } else { Err(invalid("it does not listen; of systemd, set `Accept=no`")) }
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}
