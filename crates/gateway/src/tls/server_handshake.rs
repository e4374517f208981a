//! Performs rustls' handshake over a socket. Enters: a socket and a rustls configuration. Leaves: a connection whose handshake
//! is complete, or why it is not; the alert has been sent then. Not here: who the client is; deadlines.
//!
//! rustls' unbuffered connection leaves buffers to its caller. Those of a handshake are freed with it, and its secrets go to
//! the record layer of `net`.

use std::io;
use std::sync::Arc;

use rustls::server::{Acceptor, ClientHello, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError};
use rustls::{CommonState, Error, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::net::{Leftovers, TlsStream};

/// How much a handshake reads at once: most messages of a device fit.
const READ: usize = 4 << 10;
/// The limit of bytes of a handshake that are not processed yet: rustls takes messages of 64 KiB, in records.
const MAX_INCOMING: usize = 72 << 10;

/// The length of a record's header, and the limit of a record with it, as rustls has it [RFC 5246, 6.2.3].
const RECORD_HEADER: usize = 5;
const MAX_RECORD: usize = RECORD_HEADER + (16 << 10) + 2048;

/// A socket whose handshake has not begun.
pub(super) struct ServerHandshake<S> {
    socket: S,
    incoming: Vec<u8>,
    outgoing: Vec<u8>,
}

/// A handshake that failed.
pub(super) struct Failure<S> {
    /// rustls' reason, or that of the socket.
    pub(super) error: io::Error,
    /// To close it.
    pub(super) socket: S,
}

/// A connection whose handshake is complete.
pub(super) struct Completed<S> {
    socket: S,
    connection: UnbufferedServerConnection,
    leftovers: Leftovers,
}

impl<S: AsyncRead + AsyncWrite + Unpin> ServerHandshake<S> {
    pub(super) const fn new(socket: S) -> Self {
        Self { socket, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// Reads the ClientHello, which [`complete`](Self::complete) will process again, and passes it to `choose`.
    pub(super) async fn peek<T>(mut self, choose: impl FnOnce(&ClientHello<'_>) -> T) -> Result<(Self, T), Failure<S>> {
        let mut acceptor = Acceptor::default();
        loop {
            let known = self.incoming.len();
            if let Err(error) = self.read().await {
                return Err(self.failed(error));
            }
            let mut new = &self.incoming[known..];
            while !new.is_empty() {
                // Fails only if rustls' own buffer is full.
                if let Err(error) = acceptor.read_tls(&mut new) {
                    return Err(self.failed(error));
                }
                match acceptor.accept() {
                    Ok(Some(accepted)) => return Ok((self, choose(&accepted.client_hello()))),
                    Ok(None) => {}
                    Err((error, mut alert)) => {
                        let _ = alert.write_all(&mut self.outgoing);
                        return Err(self.fail(error).await);
                    }
                }
            }
        }
    }

    /// Completes the handshake. What the gateway sends last may still have to be sent: it goes with its first bytes, or when
    /// it waits for the client.
    pub(super) async fn complete(mut self, config: Arc<ServerConfig>) -> Result<Completed<S>, Failure<S>> {
        let mut connection = match UnbufferedServerConnection::new(config) {
            Ok(connection) => connection,
            Err(error) => return Err(self.failed(io::Error::other(error))),
        };
        // How many of the bytes rustls may see: a record more whenever it wants one. What follows the handshake is not for it.
        let mut visible = 0;
        loop {
            let status = connection.process_tls_records(&mut self.incoming[..visible]);
            let (used, mut must_wait) = (status.discard, false);
            let failed = match status.state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, &mut self.outgoing).err(),
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // Sent when the client has to answer, together with what follows.
                    data.done();
                    None
                }
                Ok(ConnectionState::BlockedHandshake) => {
                    must_wait = true;
                    None
                }
                Ok(ConnectionState::WriteTraffic(_)) => {
                    self.incoming.drain(..used);
                    let Self { socket, mut incoming, outgoing } = self;
                    incoming.shrink_to_fit();
                    return Ok(Completed { socket, connection, leftovers: Leftovers { incoming, outgoing } });
                }
                // Application data and the end of the connection, which come behind the handshake, and early data, which is
                // not accepted.
                Ok(_) => Some(Error::General("rustls is in a state that no handshake has".into())),
                Err(error) => Some(error),
            };
            self.incoming.drain(..used);
            visible -= used;
            if let Some(error) = failed {
                // The alert, which comes before anything else is processed.
                let status = connection.process_tls_records(&mut self.incoming[..visible]);
                if let Ok(ConnectionState::EncodeTlsData(data)) = status.state {
                    let _ = encode(data, &mut self.outgoing);
                }
                return Err(self.fail(error).await);
            }
            if must_wait {
                visible += match self.next_record(visible).await {
                    Ok(len) => len,
                    Err(error) => return Err(self.failed(error)),
                };
            }
        }
    }

    /// The length of the record at this place. If it is incomplete, it is the client's turn: sends what waits, and reads.
    async fn next_record(&mut self, at: usize) -> io::Result<usize> {
        loop {
            match record_len(&self.incoming[at..]) {
                0 => {
                    self.send().await?;
                    self.read().await?;
                }
                len => return Ok(len),
            }
        }
    }

    async fn send(&mut self) -> io::Result<()> {
        if !self.outgoing.is_empty() {
            self.socket.write_all(&self.outgoing).await?;
            self.socket.flush().await?;
            self.outgoing.clear();
        }
        Ok(())
    }

    async fn read(&mut self) -> io::Result<()> {
        if self.incoming.len() >= MAX_INCOMING {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.incoming.reserve(READ);
        match self.socket.read_buf(&mut self.incoming).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn fail(mut self, error: Error) -> Failure<S> {
        // The alert is a courtesy: the reason is that of rustls.
        let _ = self.send().await;
        self.failed(io::Error::new(io::ErrorKind::InvalidData, error))
    }

    fn failed(self, error: io::Error) -> Failure<S> {
        Failure { error, socket: self.socket }
    }
}

/// The length of the record at the beginning of `bytes`; 0: it is incomplete. What is no record is for rustls to reject.
fn record_len(bytes: &[u8]) -> usize {
    let Some(&[content_type, major, _, high, low]) = bytes.first_chunk() else { return 0 };
    let len = RECORD_HEADER + usize::from(u16::from_be_bytes([high, low]));
    let is_record = (20..=23).contains(&content_type) && major == 3 && len <= MAX_RECORD;
    match (is_record, bytes.len() < len) {
        (true, true) => 0,
        (true, false) => len,
        (false, _) => bytes.len(),
    }
}

fn encode<D>(mut data: EncodeTlsData<'_, D>, outgoing: &mut Vec<u8>) -> Result<(), Error> {
    let wrong = |_| Error::General("rustls does not encode its own message".into());
    let at = outgoing.len();
    // Asks for the length.
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) else {
        return Ok(());
    };
    outgoing.resize(at + required_size, 0);
    data.encode(&mut outgoing[at..]).map(|_| ()).map_err(wrong)
}

impl<S: AsyncRead + AsyncWrite + Unpin> Completed<S> {
    /// What the handshake has agreed on.
    pub(super) fn state(&self) -> &CommonState {
        &self.connection
    }

    pub(super) const fn socket(&self) -> &S {
        &self.socket
    }

    /// The encrypted stream. The configuration must have allowed to extract the secrets.
    pub(super) fn into_stream(self) -> Result<TlsStream<S>, Error> {
        let Self { socket, connection, leftovers } = self;
        let (secrets, keys) = connection.dangerous_into_kernel_connection()?;
        TlsStream::new(socket, secrets, keys, leftovers)
    }
}

#[cfg(test)]
mod tests;
