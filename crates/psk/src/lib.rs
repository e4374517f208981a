//! A TLS server for clients with pre-shared keys [RFC 4279, RFC 5489; RFC 8446, 2.2]. It uses OpenSSL because rustls does
//! not support external pre-shared keys. Takes sockets and a [`PskLookup`]; returns encrypted streams and the proved
//! identity.
//!
//! An unknown identity gets a random key, so that its handshake fails exactly like one with a wrong key. The server has no
//! certificate and no session resumption: with a certificate, TLS 1.3 may silently skip the pre-shared key.

mod context;
mod handshake;
mod hello_limit;

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use openssl::ssl::{NameType, Ssl, SslCipherRef, SslContext, SslVersion};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_openssl::SslStream;
use zeroize::Zeroizing;

use handshake::{HANDSHAKE, Handshake};
use hello_limit::HelloLimit;

/// The longest key that OpenSSL accepts, in bytes.
pub const MAX_KEY: usize = 256;
/// The longest identity that OpenSSL accepts, in bytes.
pub const MAX_IDENTITY: usize = 256;

/// A version of TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The settings of a server.
#[derive(Clone, Copy, Debug)]
pub struct Settings<'a> {
    /// The versions of TLS, at least one.
    pub versions: &'a [Version],
    /// The ALPN protocols, the preferred one first. A client that offers only other protocols is rejected; one that offers
    /// none is accepted. Empty: ALPN is ignored.
    pub alpn: &'a [String],
}

/// The keys that a server knows.
pub trait PskLookup: Send + Sync + 'static {
    /// The owner of a key, which the caller gets back with the accepted connection.
    type Owner: Send;

    /// Returns the key of an identity; `None` if the identity is unknown. Called during the handshake, so it must not
    /// block. A key longer than [`MAX_KEY`] counts as unknown.
    fn look_up(&self, identity: &str) -> Option<Psk<Self::Owner>>;
}

/// A key and its owner.
#[derive(Debug)]
pub struct Psk<Owner> {
    /// The key's bytes.
    pub key: Zeroizing<Box<[u8]>>,
    /// The owner of the key.
    pub owner: Owner,
}

/// Accepts TLS connections with pre-shared keys.
pub struct Acceptor<Lookup> {
    context: SslContext,
    lookup: Arc<Lookup>,
}

impl<Lookup> fmt::Debug for Acceptor<Lookup> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Acceptor")
    }
}

/// A finished handshake: the client has proved that it has the key of its identity.
#[derive(Debug)]
pub struct Accepted<S, Owner> {
    /// The encrypted stream.
    pub stream: PskStream<S>,
    /// The version of TLS.
    pub version: Version,
    /// The cipher suite by its standard name, such as `TLS_AES_128_GCM_SHA256`.
    pub cipher: &'static str,
    /// The server name that the client requested [RFC 6066, 3].
    pub sni: Option<Box<str>>,
    /// The negotiated ALPN protocol.
    pub alpn: Option<Box<str>>,
    /// The client's identity.
    pub identity: Box<str>,
    /// The owner that the lookup returned with the key.
    pub owner: Owner,
}

/// A failed handshake. The server has sent the TLS alert.
#[derive(Debug)]
pub struct Rejected<S> {
    /// Why it failed.
    pub reason: Reason,
    /// The connection, for the caller to close. `None` if OpenSSL could not allocate it.
    pub stream: Option<PskStream<S>>,
}

/// Why a handshake failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// No common version of TLS.
    Version,
    /// No common cipher suite, group or ALPN protocol.
    Parameters,
    /// The client does not speak TLS.
    NotTls,
    /// The connection ended before the handshake did.
    Closed,
    /// The lookup does not know the identity.
    UnknownIdentity,
    /// The client's key is not the one of its identity.
    WrongKey,
    /// Anything else, such as a client that has no pre-shared key, or a ClientHello of more than 16 KiB.
    Other,
}

/// OpenSSL rejected the settings.
#[derive(Debug)]
pub struct SetupError(openssl::error::ErrorStack);

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for SetupError {}

impl<Lookup: PskLookup> Acceptor<Lookup> {
    /// Creates a server with these settings and keys.
    ///
    /// # Errors
    /// OpenSSL rejects the settings.
    pub fn new(settings: Settings<'_>, lookup: Lookup) -> Result<Self, SetupError> {
        Ok(Self { context: context::build(settings).map_err(SetupError)?, lookup: Arc::new(lookup) })
    }

    /// The lookup of keys.
    pub fn lookup(&self) -> &Lookup {
        &self.lookup
    }

    /// Performs the handshake with a client. Has no deadline: the caller sets one.
    ///
    /// # Errors
    /// The handshake failed, or the client did not use its pre-shared key.
    pub async fn accept<S>(&self, socket: S) -> Result<Accepted<S, Lookup::Owner>, Rejected<S>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let handshake = Arc::new(Handshake::new(Arc::clone(&self.lookup)));
        let begin = || {
            let mut ssl = Ssl::new(&self.context)?;
            ssl.set_ex_data(*HANDSHAKE, handshake.clone());
            SslStream::new(ssl, HelloLimit::new(socket))
        };
        let mut stream = begin().map_err(|_| Rejected { reason: Reason::Other, stream: None })?;
        let result = Pin::new(&mut stream).accept().await;
        let looked_up = handshake.take();
        let rejected = |reason, stream| Rejected { reason, stream: Some(PskStream(stream)) };
        if let Err(error) = result {
            tracing::debug!(%error, "TLS handshake failed");
            return Err(rejected(handshake::reason(&error, looked_up.as_ref()), stream));
        }
        stream.get_mut().end();
        let ssl = stream.ssl();
        let version = if ssl.version2() == Some(SslVersion::TLS1_3) { Version::Tls13 } else { Version::Tls12 };
        let cipher = ssl.current_cipher();
        // The lookup of an identity does not prove that its key was used.
        let is_used = match version {
            Version::Tls13 => ssl.session_reused(),
            Version::Tls12 => cipher.is_some_and(|cipher| cipher.name().contains("PSK")),
        };
        let cipher = cipher.and_then(SslCipherRef::standard_name).unwrap_or_default();
        let sni = ssl.servername(NameType::HOST_NAME).map(Into::into);
        let alpn = ssl.selected_alpn_protocol().and_then(|name| std::str::from_utf8(name).ok()).map(Into::into);
        match looked_up {
            Some(Some((identity, owner))) if is_used => {
                Ok(Accepted { stream: PskStream(stream), version, cipher, sni, alpn, identity, owner })
            }
            _ => Err(rejected(Reason::Other, stream)),
        }
    }
}

/// A connection encrypted with a pre-shared key.
#[derive(Debug)]
pub struct PskStream<S>(SslStream<HelloLimit<S>>);

impl<S> PskStream<S> {
    /// The connection below TLS.
    pub fn get_ref(&self) -> &S {
        self.0.get_ref().get_ref()
    }

    /// As [`get_ref`](Self::get_ref).
    pub fn get_mut(&mut self) -> &mut S {
        self.0.get_mut().get_mut()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for PskStream<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for PskStream<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
