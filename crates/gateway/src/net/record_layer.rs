//! The record layer of an established TLS connection, on the server's side. Enters: whole records, and plaintext. Leaves:
//! plaintext, and records. rustls performs the handshake; this file counts records and interprets what is not application data:
//! alerts and key updates. Not here: sockets, buffers, ciphers and keys (`record_keys.rs`).
//!
//! Why not rustls' own: its connection keeps 4 KiB of buffer and the state of the handshake for each idle client, reads 4 KiB
//! at a time, and copies each record twice.

use rustls::crypto::cipher::InboundOpaqueMessage;
use rustls::{
    AlertDescription, ContentType, Error, ExtractedSecrets, HandshakeType, ProtocolVersion, SupportedCipherSuite,
};

use super::record_keys::{HEADER, MAX_PLAINTEXT, Opened, Opener, Payload, Records, Sealer, TrafficSecrets};

/// The limit of a protected record behind its header [RFC 8446, 5.2]; TLS 1.2 allows more, which no client uses: it is for
/// compression and MACs that its ciphers here do not have.
const MAX_PROTECTED: usize = MAX_PLAINTEXT + 256;
/// The limit of records without content in a row: they cost the gateway more than the client.
const MAX_EMPTY: u8 = 32;
/// The limit of key updates that the client requests between two records with content.
const MAX_KEY_UPDATES: u8 = 32;
/// The limit of warnings, which only TLS 1.2 has.
const MAX_WARNINGS: u8 = 4;
/// Alerts are of two levels [RFC 8446, 6].
const WARNING: u8 = 1;
const FATAL: u8 = 2;
/// The limit of an alert as a record: of two bytes, with whatever a cipher adds.
const MAX_ALERT: usize = 64;

/// Why a connection has to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    /// The client violates the protocol; it is sent this alert.
    Alert(AlertDescription),
    /// The client has sent a fatal alert, and is sent nothing.
    Received(AlertDescription),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Broken::Alert(alert) => write!(f, "the client violates TLS: {alert:?}"),
            Broken::Received(alert) => write!(f, "the client sent a fatal alert: {alert:?}"),
        }
    }
}

impl std::error::Error for Broken {}

/// What a record contains.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content<'a> {
    /// Application data.
    Data(&'a [u8]),
    /// So many bytes of application data, in the place for them.
    Placed(usize),
    /// Something between the two ends of TLS.
    Control,
    /// close_notify: the client sends nothing more.
    Closed,
}

/// The keys and counters of both directions.
pub(crate) struct RecordLayer {
    suite: SupportedCipherSuite,
    opener: Opener,
    sealer: Sealer,
    received: u64,
    sent: u64,
    /// How many records may be encrypted with one key.
    max_sent: u64,
    empty: u8,
    key_updates: u8,
    warnings: u8,
    /// The client has requested that the gateway changes its key, too.
    owes_key_update: bool,
}

impl std::fmt::Debug for RecordLayer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RecordLayer({:?})", self.suite)
    }
}

impl RecordLayer {
    /// Continues a connection whose handshake rustls has completed. `secrets` were the key log of that handshake.
    ///
    /// # Errors
    /// The cipher suite and the secrets do not belong together, which must not happen.
    pub(super) fn new(
        suite: SupportedCipherSuite,
        extracted: ExtractedSecrets,
        secrets: &TrafficSecrets,
    ) -> Result<Self, Error> {
        let max_sent = match suite {
            SupportedCipherSuite::Tls13(suite) => suite.common.confidentiality_limit,
            SupportedCipherSuite::Tls12(suite) => suite.common.confidentiality_limit,
        };
        let ((sent, tx), (received, rx)) = (extracted.tx, extracted.rx);
        let mut secrets = secrets.take();
        Ok(Self {
            suite,
            opener: Opener::new(suite, rx, &mut secrets)?,
            sealer: Sealer::new(suite, tx, &mut secrets, sent)?,
            received,
            sent,
            max_sent,
            empty: 0,
            key_updates: 0,
            warnings: 0,
            owes_key_update: false,
        })
    }

    /// The length of the record at the beginning of `bytes`, with its header; `None`: the header is incomplete.
    ///
    /// # Errors
    /// It is no record, or too long.
    pub(crate) fn record_len(bytes: &[u8]) -> Result<Option<usize>, Broken> {
        let Some(&[content_type, major, _, high, low]) = bytes.first_chunk::<HEADER>() else { return Ok(None) };
        let is_known =
            (u8::from(ContentType::ChangeCipherSpec)..=u8::from(ContentType::ApplicationData)).contains(&content_type);
        if !is_known || major != 3 {
            return Err(Broken::Alert(AlertDescription::DecodeError));
        }
        let len = usize::from(u16::from_be_bytes([high, low]));
        if len > MAX_PROTECTED { Err(Broken::Alert(AlertDescription::RecordOverflow)) } else { Ok(Some(HEADER + len)) }
    }

    /// Decrypts a whole record: into `place` if that has room for what it may contain, else in place, which costs a copy. Data that
    /// `place` gets begins at its beginning.
    ///
    /// # Errors
    /// The connection has to be closed.
    pub(super) fn open<'b>(&mut self, record: &'b mut [u8], place: &mut [u8]) -> Result<Content<'b>, Broken> {
        let (header, payload) =
            record.split_at_mut_checked(HEADER).ok_or(Broken::Alert(AlertDescription::DecodeError))?;
        let outer = ContentType::from(header[0]);
        // All records are protected now. A ChangeCipherSpec behind the handshake is as wrong as any other plaintext
        // [RFC 8446, 5].
        if outer == ContentType::ChangeCipherSpec || (self.is_tls13() && outer != ContentType::ApplicationData) {
            return Err(Broken::Alert(AlertDescription::UnexpectedMessage));
        }
        let version = ProtocolVersion::from(u16::from_be_bytes([header[1], header[2]]));
        let record = InboundOpaqueMessage::new(outer, version, payload);
        let opened = self.opener.open(record, self.received, place);
        let Opened { typ, payload } = opened.map_err(|error| match error {
            Error::PeerSentOversizedRecord => Broken::Alert(AlertDescription::RecordOverflow),
            Error::DecryptError => Broken::Alert(AlertDescription::BadRecordMac),
            _ => Broken::Alert(AlertDescription::UnexpectedMessage),
        })?;
        self.received = self.received.checked_add(1).ok_or(Broken::Alert(AlertDescription::InternalError))?;
        if !payload.as_slice().is_empty() {
            self.empty = 0;
        } else if self.empty == MAX_EMPTY {
            return Err(Broken::Alert(AlertDescription::UnexpectedMessage));
        } else {
            self.empty += 1;
        }
        match typ {
            ContentType::ApplicationData => {
                if !payload.as_slice().is_empty() {
                    self.key_updates = 0;
                }
                Ok(match payload {
                    Payload::InPlace(data) => Content::Data(data),
                    Payload::Placed(data) => Content::Placed(data.len()),
                })
            }
            ContentType::Alert => self.take_alert(payload.as_slice()),
            ContentType::Handshake if self.is_tls13() => self.take_key_update(payload.as_slice()),
            // The client asks for a renegotiation, which could change who it is.
            ContentType::Handshake => Err(Broken::Alert(AlertDescription::NoRenegotiation)),
            _ => Err(Broken::Alert(AlertDescription::UnexpectedMessage)),
        }
    }

    fn take_alert(&mut self, alert: &[u8]) -> Result<Content<'static>, Broken> {
        let &[level, description] = alert else {
            // [RFC 8446, 5.4]
            let is_empty = alert.is_empty();
            let wrong = if is_empty { AlertDescription::UnexpectedMessage } else { AlertDescription::DecodeError };
            return Err(Broken::Alert(wrong));
        };
        let description = AlertDescription::from(description);
        match (level, description) {
            (WARNING | FATAL, AlertDescription::CloseNotify) => Ok(Content::Closed),
            (WARNING, AlertDescription::UserCanceled) => self.take_warning(),
            (WARNING, _) if self.is_tls13() => Err(Broken::Alert(AlertDescription::DecodeError)),
            (WARNING, _) => self.take_warning(),
            (FATAL, _) => Err(Broken::Received(description)),
            _ => Err(Broken::Alert(AlertDescription::IllegalParameter)),
        }
    }

    fn take_warning(&mut self) -> Result<Content<'static>, Broken> {
        if self.warnings == MAX_WARNINGS {
            return Err(Broken::Alert(AlertDescription::UnexpectedMessage));
        }
        self.warnings += 1;
        Ok(Content::Control)
    }

    /// KeyUpdate is the only message that a client may send behind the handshake, and a record ends with it, since the next
    /// one has another key [RFC 8446, 4.6.3, 5.1].
    fn take_key_update(&mut self, message: &[u8]) -> Result<Content<'static>, Broken> {
        let requested = match message {
            [kind, 0, 0, 1, request @ (0 | 1)] if *kind == u8::from(HandshakeType::KeyUpdate) => *request == 1,
            [kind, 0, 0, 1, _] if *kind == u8::from(HandshakeType::KeyUpdate) => {
                return Err(Broken::Alert(AlertDescription::IllegalParameter));
            }
            _ => return Err(Broken::Alert(AlertDescription::UnexpectedMessage)),
        };
        if self.key_updates == MAX_KEY_UPDATES {
            return Err(Broken::Alert(AlertDescription::UnexpectedMessage));
        }
        self.key_updates += 1;
        self.opener.update(self.suite).map_err(|_| Broken::Alert(AlertDescription::InternalError))?;
        self.received = 0;
        self.owes_key_update |= requested;
        Ok(Content::Control)
    }

    /// Adds at most [`MAX_PLAINTEXT`] bytes of application data to `records`, and what has to precede them.
    ///
    /// # Errors
    /// The keys are used up, and TLS 1.2 has no new ones.
    pub(super) fn seal(&mut self, data: &[u8], records: &mut Records<'_>) -> Result<(), Error> {
        if self.owes_key_update || self.sent >= self.max_sent {
            self.update_key(records)?;
        }
        if data.is_empty() { Ok(()) } else { self.encrypt(ContentType::ApplicationData, data, records) }
    }

    /// An alert as a record. After it, nothing may be sent.
    pub(super) fn seal_alert(&mut self, alert: AlertDescription) -> Result<Vec<u8>, Error> {
        let level = match alert {
            // Whatever follows [RFC 8446, 6.1; RFC 5246, 7.2.2].
            AlertDescription::CloseNotify | AlertDescription::NoRenegotiation => WARNING,
            _ => FATAL,
        };
        let mut buffer = [0; MAX_ALERT];
        let mut records = Records::new(&mut buffer);
        self.encrypt(ContentType::Alert, &[level, alert.into()], &mut records)?;
        Ok(records.as_slice().to_vec())
    }

    #[cfg(test)]
    pub(super) const fn limit_records(&mut self, max_sent: u64) {
        self.max_sent = max_sent;
    }

    /// Announces a new key, and encrypts with it from then on.
    fn update_key(&mut self, records: &mut Records<'_>) -> Result<(), Error> {
        if !self.is_tls13() {
            return Err(Error::EncryptError);
        }
        let message = [HandshakeType::KeyUpdate.into(), 0, 0, 1, 0];
        self.encrypt(ContentType::Handshake, &message, records)?;
        self.sealer.update(self.suite)?;
        (self.sent, self.owes_key_update) = (0, false);
        Ok(())
    }

    fn encrypt(&mut self, content: ContentType, payload: &[u8], records: &mut Records<'_>) -> Result<(), Error> {
        // Counted in any case: no number is used twice.
        let number = self.sent;
        self.sent += 1;
        self.sealer.seal(content, payload, number, records)
    }

    const fn is_tls13(&self) -> bool {
        matches!(self.suite, SupportedCipherSuite::Tls13(_))
    }
}
