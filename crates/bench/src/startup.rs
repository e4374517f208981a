//! The time that the gateway takes to start. Enters: a command. Leaves: how long until its socket listens, and until the first
//! client has an answer.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustls::ClientConnection;
use rustls::pki_types::ServerName;

use crate::load::Load;
use crate::report::Spread;

/// Between two attempts to connect. Without it, they would take a core from the process that starts.
const PAUSE: Duration = Duration::from_micros(50);
const DEADLINE: Duration = Duration::from_secs(300);
/// How often [`median`] measures.
const STARTS: usize = 5;
/// The type of a TLS record with handshake messages.
const HANDSHAKE: u8 = 22;

/// Both from the start of the process on.
pub(crate) struct Startup {
    pub(crate) listening: Duration,
    /// The first byte of ServerHello has arrived.
    pub(crate) serving: Duration,
}

/// The median time until the first client has an answer, in ms. The first start fills the page cache.
pub(crate) fn median(load: &Load, mut command: Command, address: SocketAddr) -> anyhow::Result<f64> {
    measure(load, &mut command, address)?;
    let mut serving = || Ok(measure(load, &mut command, address)?.serving.as_secs_f64() * 1e3);
    let times = (0..STARTS).map(|_| serving()).collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Spread::of(&times).context("no starts")?.median)
}

/// Starts the gateway, and ends it.
pub(crate) fn measure(load: &Load, command: &mut Command, address: SocketAddr) -> anyhow::Result<Startup> {
    let mut tls = ClientConnection::new(load.connector().config().clone(), ServerName::try_from("localhost")?)?;
    let mut hello = Vec::new();
    tls.write_tls(&mut hello)?;
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let begin = Instant::now();
    let mut process = command.spawn()?;
    let mut first_answer = || {
        let mut socket = loop {
            match TcpStream::connect(address) {
                Ok(socket) => break socket,
                Err(_) if begin.elapsed() < DEADLINE => std::thread::sleep(PAUSE),
                Err(error) => bail!("the gateway does not listen in time: {error}"),
            }
            if let Some(status) = process.try_wait()? {
                bail!("the gateway ended at once ({status})");
            }
        };
        let listening = begin.elapsed();
        socket.set_read_timeout(Some(DEADLINE))?;
        socket.write_all(&hello)?;
        let mut first = [0];
        socket.read_exact(&mut first)?;
        let serving = begin.elapsed();
        ensure!(first == [HANDSHAKE], "the gateway does not answer ClientHello");
        Ok(Startup { listening, serving })
    };
    let startup = first_answer();
    process.kill()?;
    process.wait()?;
    startup
}
