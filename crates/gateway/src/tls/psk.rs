//! TLS with pre-shared keys, by `portcullis-psk`. Enters: a connected socket, and keys from a file or the registry. Leaves:
//! an encrypted stream and the identity, or the reason the handshake failed. Not here: OpenSSL itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_psk::{Acceptor, MAX_IDENTITY, MAX_KEY, Psk, PskLookup, Reason, Settings, Version};
use zeroize::Zeroizing;

use super::secured::{self, Failed, FailedConnection, Secured, SecuredClient};
use crate::config::tables::{self, PskFormat, Tls, TlsVersion};
use crate::config::{Complaint, Diagnostics, Reported, Setting, warn_if_exposed};
use crate::devices::{Entry, Replica, SecretKey, UsedCredential};
use crate::evidence::Evidence;
use crate::files::read_entries;
use crate::limits::Turn;
use crate::net::{Socket, Stream};
use crate::outcome::{Reject, note_detail, note_key};
use crate::peer::{self, Identity, Peer, PeerAddress, TlsSession};
use crate::refresh::FromFiles;
use crate::util::crypto::tag;

/// The gateway warns of keys with fewer bytes: an attacker who records one handshake can guess them offline.
const SHORT_KEY: usize = 16;

/// PSK settings of a listener, compiled.
#[derive(Debug)]
pub(super) struct PskTls(Acceptor<KnownPsks>);

/// The keys that a listener accepts.
struct KnownPsks {
    file: Option<FromFiles<Keys>>,
    registry: Option<Arc<Replica>>,
}

/// By identity.
type Keys = std::collections::HashMap<Box<str>, SecretKey>;

impl fmt::Debug for KnownPsks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KnownPsks(***)")
    }
}

impl PskTls {
    /// Reads the key file.
    ///
    /// # Errors
    /// The file or a setting cannot be used; the problem was reported.
    pub(super) fn open(
        tls: &Tls,
        psk: &Setting<tables::Psk>,
        registry: Option<&Arc<Replica>>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let keys = KnownPsks::open(psk, registry, diagnostics)?;
        let version = |version: &TlsVersion| match version {
            TlsVersion::V12 => Version::Tls12,
            TlsVersion::V13 => Version::Tls13,
        };
        let versions: Vec<Version> = tls.versions.iter().map(version).collect();
        Acceptor::new(Settings { versions: &versions, alpn: &tls.alpn }, keys)
            .map(Self)
            .map_err(|error| diagnostics.error(psk, format!("OpenSSL rejects these settings: {error}")))
    }

    /// Reads the key file again if it has changed. Returns whether sessions have to be evaluated again.
    pub(super) fn read_changed_file(&self, listener: &str) -> bool {
        self.0.lookup().file.as_ref().is_some_and(|keys| keys.read_if_changed(listener))
    }

    /// Whether the file still has the key with this tag under `identity`.
    pub(super) fn has(&self, identity: &str, expected: u64) -> bool {
        let file = self.0.lookup().file.as_ref();
        file.is_some_and(|keys| keys.load().get(identity).is_some_and(|key| tag(key) == expected))
    }

    pub(super) fn registry(&self) -> Option<&Arc<Replica>> {
        self.0.lookup().registry.as_ref()
    }

    /// Performs the handshake with a device. The caller sets the deadline.
    pub(super) async fn accept(
        &self,
        socket: Socket,
        address: PeerAddress,
        turn: &mut Turn,
        is_recent: bool,
    ) -> Result<Secured, Failed> {
        // A client that sends nothing has no turn. An error is reported by the handshake.
        let _ = socket.readable().await;
        if let Err(error) = turn.begin(|| is_recent).await {
            note_detail(&error.to_string());
            return Err(Failed { reject: Reject::TooManyHandshakes, connection: Some(FailedConnection::Tcp(socket)) });
        }
        // OpenSSL computes within it, but little: a pre-shared key is proved by hashes.
        let mut accepted = turn.wait_for(self.0.accept(socket)).await.map_err(|rejected| Failed {
            reject: self.0.lookup().or_registry_unavailable(reject(rejected.reason)),
            connection: rejected.stream.map(|stream| FailedConnection::Psk(Box::new(stream))),
        })?;
        accepted.stream.get_mut().acknowledge_at_once();
        let (tag, device) = accepted.owner;
        let evidence = match &device {
            Some(entry) => {
                let identity = accepted.identity.clone();
                Evidence::DeviceKey(Box::new(entry.evidence(UsedCredential::Psk { identity, tag })))
            }
            None => Evidence::Psk { identity: accepted.identity.clone(), tag },
        };
        let session = TlsSession {
            version: match accepted.version {
                Version::Tls12 => "TLSv1.2",
                Version::Tls13 => "TLSv1.3",
            },
            cipher: accepted.cipher.into(),
            sni: accepted.sni,
            alpn: accepted.alpn,
            resumed: false,
        };
        let identity = Identity::Psk(peer::Psk { identity: accepted.identity, tag });
        let stream = Stream::FromPskDevice(Box::new(accepted.stream));
        let peer = Peer::new(address, Some(session), identity);
        Ok(Secured { stream, client: SecuredClient { peer, evidence: Some(evidence), device, credentials: None } })
    }
}

/// The reason in the log for a handshake that failed.
fn reject(reason: Reason) -> Reject {
    match reason {
        Reason::Version => Reject::TlsVersion,
        Reason::Parameters => Reject::TlsParameters,
        Reason::NotTls => Reject::NotTls,
        Reason::Closed => Reject::HandshakeClosed,
        Reason::UnknownIdentity => Reject::UnknownPsk,
        Reason::WrongKey => Reject::WrongPsk,
        Reason::Other => Reject::HandshakeFailed,
    }
}

impl PskLookup for KnownPsks {
    /// The tag of the key, and the registry entry of its device.
    type Owner = (u64, Option<Arc<Entry>>);

    fn look_up(&self, identity: &str) -> Option<Psk<Self::Owner>> {
        // For the log, if the key is wrong or unknown.
        note_key(identity);
        let in_file = || Some((self.file.as_ref()?.load().get(identity).cloned()?, None));
        let in_registry = || {
            let entry = self.registry.as_ref()?.by_psk(identity)?;
            Some((Zeroizing::new(entry.psk()?.1.into()), Some(entry)))
        };
        let (key, device): (SecretKey, _) = in_file().or_else(in_registry)?;
        let tag = tag(&key);
        Some(Psk { key, owner: (tag, device) })
    }
}

impl KnownPsks {
    fn open(
        settings: &tables::Psk,
        registry: Option<&Arc<Replica>>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let open = |(file, format): &(Setting<PathBuf>, PskFormat)| {
            warn_if_exposed(file, file, "the keys in", diagnostics);
            let read = match format {
                PskFormat::Hex => read_hex,
                PskFormat::Raw => read_raw,
            };
            let keys = FromFiles::open("pre-shared keys", file.value.clone(), read)
                .map_err(|complaint| diagnostics.error(file, complaint))?;
            let short = keys.load().values().filter(|key| key.len() < SHORT_KEY).count();
            if short > 0 {
                let complaint = Complaint::new(format!("{short} of the keys are shorter than {SHORT_KEY} bytes"));
                let hint =
                    "an attacker who records a handshake can guess a short key; make new ones: openssl rand -hex 32";
                diagnostics.warning(file, complaint.hint(hint));
            }
            Ok(keys)
        };
        let file = settings.file.as_ref().map(open).transpose()?;
        Ok(Self { file, registry: registry.filter(|_| settings.registry).cloned() })
    }

    /// An unknown identity may be in the registry, if that is out of reach.
    fn or_registry_unavailable(&self, reject: Reject) -> Reject {
        secured::or_registry_unavailable(reject, Reject::UnknownPsk, self.registry.as_ref())
    }
}

fn read_hex(path: &Path) -> Result<Keys, Complaint> {
    read(path, PskFormat::Hex)
}

fn read_raw(path: &Path) -> Result<Keys, Complaint> {
    read(path, PskFormat::Raw)
}

fn read(path: &Path, format: PskFormat) -> Result<Keys, Complaint> {
    let mut keys = Keys::new();
    read_entries(path, |identity, value| {
        let key = match format {
            PskFormat::Raw => Zeroizing::new(value.to_vec()),
            PskFormat::Hex => std::str::from_utf8(value.trim_ascii())
                .ok()
                .and_then(|text| hex::decode(text).ok().map(Zeroizing::new))
                .ok_or("the key is not hexadecimal; check `format`")?,
        };
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(format!("a key has 1 to {MAX_KEY} bytes, this one has {}", key.len()));
        }
        if identity.len() > MAX_IDENTITY {
            return Err(format!("an identity has at most {MAX_IDENTITY} bytes"));
        }
        match keys.insert(identity.into(), Zeroizing::new(key.as_slice().into())) {
            Some(_) => Err(format!("the identity `{}` is listed twice", identity.escape_debug())),
            None => Ok(()),
        }
    })?;
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &[u8], format: PskFormat) -> Result<Vec<(String, Vec<u8>)>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("psk");
        std::fs::write(&path, text).unwrap();
        let keys = read(&path, format).map_err(|complaint| complaint.message)?;
        let mut keys: Vec<_> = keys.iter().map(|(identity, key)| (identity.to_string(), key.to_vec())).collect();
        keys.sort();
        Ok(keys)
    }

    #[test]
    fn files_of_both_formats() {
        let hex = read_text(b"# a comment\n\na:00ff\r\nb:0A0b \n", PskFormat::Hex).unwrap();
        assert_eq!(hex, [("a".to_owned(), vec![0, 255]), ("b".to_owned(), vec![10, 11])]);
        let raw = read_text(b"a:00ff\nb:x:y \n\nc:\xff\xfe", PskFormat::Raw).unwrap();
        let expected = [("a", b"00ff".to_vec()), ("b", b"x:y ".to_vec()), ("c", vec![255, 254])];
        assert_eq!(raw, expected.map(|(identity, key)| (identity.to_owned(), key)));
        for wrong in ["a", "a:", ":00", "a:0", "a:!?", "a:00\na:01"] {
            let error = read_text(wrong.as_bytes(), PskFormat::Hex).unwrap_err();
            assert!(error.contains("line ") && !error.contains("!?"), "{error}");
        }
    }
}
