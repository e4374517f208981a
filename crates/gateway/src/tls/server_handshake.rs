//! Performs rustls' handshake over a socket. Enters: a socket and a rustls configuration. Leaves: a connection whose handshake
//! is complete, or why it is not; the alert has been sent then. Not here: who the client is; deadlines.
//!
//! rustls' unbuffered connection leaves buffers to its caller. Those of a handshake are freed with it, and its secrets go to
//! the record layer of `net`.

use std::io;
use std::sync::Arc;
use std::task::Poll;

use rustls::server::{Acceptor, ClientHello, UnbufferedServerConnection};
use rustls::unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus};
use rustls::{CommonState, Error, InvalidMessage, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::client_hello;
use crate::limits::{PendingPermit, Turn};
use crate::net::{Leftovers, RecordLayer, TlsStream, TrafficSecrets};

/// How much a handshake reads at once: most messages of a device fit.
const READ: usize = 4 << 10;
/// The limit of a ClientHello: 2 KB are usual, with post-quantum key exchange and a ticket of a long chain 8.
const MAX_HELLO: usize = 16 << 10;
/// The limit of bytes of a handshake that are not processed yet: a chain of 16 KiB, in records, and what comes with it.
const MAX_INCOMING: usize = 40 << 10;
/// How often a handshake has its messages in memory, at most.
const COPIES: usize = 2;

/// A socket whose handshake has not begun.
pub(super) struct ServerHandshake<'p, S> {
    socket: S,
    pending: &'p mut PendingPermit,
    /// How many bytes were received.
    received: usize,
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
    secrets: Arc<TrafficSecrets>,
    leftovers: Leftovers,
}

impl<'p, S: AsyncRead + AsyncWrite + Unpin> ServerHandshake<'p, S> {
    pub(super) const fn new(socket: S, pending: &'p mut PendingPermit) -> Self {
        Self { socket, pending, received: 0, incoming: Vec::new(), outgoing: Vec::new() }
    }

    /// Reads the ClientHello, which [`complete`](Self::complete) will process again, and passes it to `choose`.
    pub(super) async fn peek<T>(mut self, choose: impl FnOnce(&ClientHello<'_>) -> T) -> Result<(Self, T), Failure<S>> {
        let mut acceptor = Acceptor::default();
        loop {
            let known = self.incoming.len();
            if self.incoming.len() > MAX_HELLO {
                return Err(self.failed(too_large()));
            }
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

    /// Completes the handshake. `config` is for this connection alone. `is_known`: whether the client comes first, by what it
    /// has sent, if handshakes have to wait. What the gateway sends last may still have to be sent: it goes with its first bytes, or when it waits for the client.
    pub(super) async fn complete(
        mut self,
        mut config: ServerConfig,
        turn: &mut Turn,
        is_known: impl Fn(&[u8]) -> bool,
    ) -> Result<Completed<S>, Failure<S>> {
        // The record layer of `net` continues with them.
        let secrets = Arc::<TrafficSecrets>::default();
        (config.key_log, config.enable_secret_extraction) = (Arc::clone(&secrets) as _, true);
        let mut rustls = match UnbufferedServerConnection::new(Arc::new(config)) {
            Ok(connection) => Rustls { connection, visible: 0 },
            Err(error) => return Err(self.failed(io::Error::other(error))),
        };
        if let Err(error) = turn.wait_for(self.client_hello()).await {
            return Err(self.failed(error));
        }
        loop {
            if let Err(error) = turn.wait_for(self.next_record(rustls.visible)).await {
                return Err(self.failed(error));
            }
            match turn.begin(|| is_known(&self.incoming)).await {
                Ok(false) => {}
                Ok(true) => {
                    if let Err(error) = self.check_presence().await {
                        return Err(self.failed(error));
                    }
                }
                Err(error) => return Err(self.failed(io::Error::other(error))),
            }
            match rustls.process(&mut self.incoming, &mut self.outgoing) {
                Ok(Progress::NeedsMore) if self.outgoing.is_empty() => {}
                Ok(Progress::NeedsMore) => turn.has_computed(),
                Ok(Progress::Complete) => {
                    let Self { socket, mut incoming, outgoing, .. } = self;
                    incoming.shrink_to_fit();
                    let leftovers = Leftovers { incoming, outgoing };
                    return Ok(Completed { socket, connection: rustls.connection, secrets, leftovers });
                }
                Err(error) => return Err(turn.wait_for(self.fail(error)).await),
            }
        }
    }

    /// Waits until the ClientHello is complete. Until then there is nothing to compute.
    async fn client_hello(&mut self) -> io::Result<()> {
        let mut progress = client_hello::Progress::default();
        while !progress.is_complete(&self.incoming) {
            if self.incoming.len() > MAX_HELLO {
                return Err(too_large());
            }
            self.read().await?;
        }
        Ok(())
    }

    /// Whether the client is still there, after it has waited: nothing is computed for those that have gone.
    async fn check_presence(&mut self) -> io::Result<()> {
        let mut read = std::pin::pin!(self.read());
        std::future::poll_fn(|cx| match read.as_mut().poll(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(())),
        })
        .await
    }

    /// Waits until there is a whole record at this place. It is the client's turn: sends what waits, and reads.
    async fn next_record(&mut self, at: usize) -> io::Result<()> {
        while record_len(&self.incoming[at..]) == 0 {
            self.send().await?;
            self.read().await?;
        }
        Ok(())
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
            return Err(too_large());
        }
        self.incoming.reserve_exact(READ);
        // No more, whatever memory a large message has left: what follows the handshake goes to a smaller buffer.
        let read = (&mut self.socket).take(READ as u64).read_buf(&mut self.incoming).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.received += read;
        // rustls keeps a copy of the messages until the client has proved its certificate, and the buffer stays as large as it was.
        self.pending.hold(COPIES * self.received).map_err(io::Error::other)
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

/// rustls' connection, and how many of the received bytes it may see: a record more whenever it wants one. What follows the
/// handshake is not for it.
struct Rustls {
    connection: UnbufferedServerConnection,
    visible: usize,
}

/// How far a handshake has come.
enum Progress {
    NeedsMore,
    Complete,
}

impl Rustls {
    /// Processes what was received as far as possible, and appends to `outgoing` what has to be sent.
    ///
    /// # Errors
    /// rustls' reason. The alert is in `outgoing`.
    fn process(&mut self, incoming: &mut Vec<u8>, outgoing: &mut Vec<u8>) -> Result<Progress, Error> {
        loop {
            let UnbufferedStatus { discard, state, .. } =
                self.connection.process_tls_records(&mut incoming[..self.visible]);
            let progress = match state {
                Ok(ConnectionState::EncodeTlsData(data)) => encode(data, outgoing).map(|()| None),
                Ok(ConnectionState::TransmitTlsData(data)) => {
                    // Sent when the client has to answer, together with what follows.
                    data.done();
                    Ok(None)
                }
                Ok(ConnectionState::BlockedHandshake) => Ok(Some(Progress::NeedsMore)),
                Ok(ConnectionState::WriteTraffic(_)) => Ok(Some(Progress::Complete)),
                // Application data and the end of the connection, which come behind the handshake, and early data, which is
                // not accepted.
                Ok(_) => Err(Error::General("rustls is in a state that no handshake has".into())),
                Err(error) => Err(error),
            };
            incoming.drain(..discard);
            self.visible -= discard;
            match progress {
                Ok(None) => {}
                Ok(Some(Progress::NeedsMore)) => match record_len(&incoming[self.visible..]) {
                    0 => return Ok(Progress::NeedsMore),
                    len => self.visible += len,
                },
                Ok(Some(Progress::Complete)) => return Ok(Progress::Complete),
                Err(error) => {
                    // The alert, which comes before anything else is processed.
                    let status = self.connection.process_tls_records(&mut incoming[..self.visible]);
                    if let Ok(ConnectionState::EncodeTlsData(data)) = status.state {
                        let _ = encode(data, outgoing);
                    }
                    return Err(error);
                }
            }
        }
    }
}

/// The length of the record at the beginning of `bytes`; 0: it is incomplete. What is no record is for rustls to reject.
fn record_len(bytes: &[u8]) -> usize {
    match RecordLayer::record_len(bytes) {
        Ok(len) => len.filter(|len| *len <= bytes.len()).unwrap_or(0),
        Err(_) => bytes.len(),
    }
}

fn too_large() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, Error::InvalidMessage(InvalidMessage::HandshakePayloadTooLarge))
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

    /// The encrypted stream.
    ///
    /// # Errors
    /// rustls does not give the secrets of its handshake, which must not happen.
    pub(super) fn into_stream(self) -> Result<TlsStream<S>, Error> {
        let Self { socket, connection, secrets, leftovers } = self;
        let suite = connection.negotiated_cipher_suite().ok_or(Error::HandshakeNotComplete)?;
        // The rest of the connection is not kept.
        let (extracted, _) = connection.dangerous_into_kernel_connection()?;
        TlsStream::new(socket, suite, extracted, &secrets, leftovers)
    }
}

#[cfg(test)]
mod tests;
