//! TLS on a listener over QUIC [RFC 9001], with certificates as over TCP. Enters: a client that begins a handshake. Leaves: its
//! stream, and its certificate chain.

use std::sync::Arc;

use quinn::ConnectionError;
use rustls::{AlertDescription, Error};

use super::certificate::{Carrier, CertificateTls};
use super::handshake::Handshake;
use super::identify::Finished;
use super::secured::{Failed, Secured};
use super::verifier::{note_error, note_presented, reject};
use crate::config::tables::Quic;
use crate::limits::{PendingPermit, Turn};
use crate::net::{Incoming, Stream};
use crate::outcome::{Reject, note_detail};
use crate::peer::{KeyFormat, PeerAddress};

/// The codes of QUIC for the alerts of TLS [RFC 9001, 4.8].
const CRYPTO_ERROR: u64 = 0x100;

impl CertificateTls {
    /// Performs the handshake with a device over QUIC, when it is its turn. The caller sets the deadline.
    pub(super) async fn accept_quic(
        &self,
        incoming: Incoming,
        settings: &Quic,
        address: PeerAddress,
        turn: &mut Turn,
        pending: &PendingPermit,
    ) -> Result<Secured, Failed> {
        let is_known = pending.is_known();
        if let Err(error) = turn.begin(|| is_known).await {
            note_detail(&error.to_string());
            return Err(Failed::without_connection(Reject::TooManyHandshakes));
        }
        let handshake = Arc::new(Handshake::default());
        let config = self.config(KeyFormat::Certificate, KeyFormat::Certificate, &handshake, Carrier::Quic);
        let completed = match incoming.begin(config, settings) {
            // The signature is computed. The rest is little, and waits for the client.
            Ok(connecting) => turn.wait_for(connecting.complete()).await,
            Err(error) => Err(error),
        };
        let connected = completed.map_err(|error| Failed::without_connection(reason(&error, &handshake)))?;
        let finished = Finished {
            certificates: connected.certificates.as_deref(),
            resumed: handshake.is_resumed(),
            version: "TLSv1.3",
            suite: handshake.suite(),
            alpn: connected.alpn.as_deref(),
            sni: handshake.sni(),
            address,
        };
        let client = finished.by_certificate(&handshake).map_err(Failed::without_connection)?;
        Ok(Secured { stream: Stream::Quic(Box::new(connected.stream)), client })
    }
}

/// Why a handshake failed. The alert has been sent.
fn reason(error: &ConnectionError, handshake: &Handshake) -> Reject {
    if let Some((error, certificate)) = handshake.take_failure() {
        note_presented(&certificate);
        note_error(&error);
        return reject(&error);
    }
    match error {
        ConnectionError::TransportError(error) => match alert(u64::from(error.code)) {
            Some(AlertDescription::CertificateRequired) => Reject::NoCertificate,
            Some(AlertDescription::NoApplicationProtocol) => {
                note_detail("the client offers none of the protocols in `alpn`");
                Reject::TlsParameters
            }
            Some(alert) => {
                note_detail(&error.reason);
                match alert {
                    AlertDescription::ProtocolVersion => Reject::TlsVersion,
                    AlertDescription::HandshakeFailure => Reject::TlsParameters,
                    _ => Reject::HandshakeFailed,
                }
            }
            None => {
                note_detail(&error.to_string());
                Reject::QuicProtocol
            }
        },
        ConnectionError::ConnectionClosed(close) => match alert(u64::from(close.error_code)) {
            Some(alert) => {
                let error = Error::AlertReceived(alert);
                note_error(&error);
                reject(&error)
            }
            None => Reject::HandshakeClosed,
        },
        ConnectionError::TimedOut => Reject::HandshakeTimeout,
        _ => Reject::HandshakeClosed,
    }
}

fn alert(code: u64) -> Option<AlertDescription> {
    let alert = code.checked_sub(CRYPTO_ERROR).and_then(|alert| u8::try_from(alert).ok());
    alert.map(AlertDescription::from)
}
