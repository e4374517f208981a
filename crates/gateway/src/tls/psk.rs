//! TLS with pre-shared keys [RFC 4279, RFC 5489; RFC 8446, 2.2], by OpenSSL: rustls has none of it. On listeners of their
//! own: where there is a certificate, too, a client may be let in by TLS 1.3 without its key ever having been used.
//!
//! An identity that nobody knows gets a random key, so that its handshake fails as one with a wrong key does. Nothing is
//! resumed: a handshake with a pre-shared key costs little more.

use std::fmt;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use openssl::ex_data::Index;
use openssl::rand::rand_bytes;
use openssl::ssl::{
    AlpnError, Ssl, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode,
    SslVersion,
};
use tokio::net::TcpStream;
use tokio_openssl::SslStream;
use zeroize::Zeroizing;

use super::{Accepted, KeyGround, Rest, Unfinished};
use crate::config::model::{ListenerTls, PskFormat, TlsVersion};
use crate::config::{At, Complaint, Document, is_exposed, model};
use crate::crypto::mark;
use crate::expr::{TlsFacts, UsedPsk};
use crate::files::read_entries;
use crate::net::Stream;
use crate::outcome::Reject;
use crate::refresh::FromFiles;
use crate::registry::{Entry, Replica, SecretKey, Used};

/// TLS 1.2's, the forward-secret ones first.
const CIPHERS: &str = "ECDHE-PSK-CHACHA20-POLY1305:ECDHE-PSK-AES256-CBC-SHA384:ECDHE-PSK-AES128-CBC-SHA256:\
                       PSK-CHACHA20-POLY1305:PSK-AES256-GCM-SHA384:PSK-AES128-GCM-SHA256:PSK-AES256-CCM:PSK-AES128-CCM";
/// TLS 1.3's: keys from outside are bound to SHA-256 [RFC 8446, 4.2.11].
const CIPHER_SUITES: &str = "TLS_AES_128_GCM_SHA256:TLS_CHACHA20_POLY1305_SHA256";
/// Of a key, in octets: shorter ones can be guessed from a single handshake that somebody overheard.
const SHORT_KEY: usize = 16;
/// What OpenSSL takes.
const MAX_KEY: usize = 256;
const MAX_IDENTITY: usize = 256;
/// Of the key that nobody has.
const RANDOM_KEY: usize = 32;

/// Where the callback finds the handshake it is called in.
static HANDSHAKE: LazyLock<Index<Ssl, Arc<Handshake>>> =
    LazyLock::new(|| Ssl::new_ex_index().expect("OpenSSL has room for one more index"));

/// The PSK side of a listener, compiled.
pub(super) struct PskTls {
    context: SslContext,
    keys: Arc<KnownPsks>,
}

impl fmt::Debug for PskTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PskTls({:?})", self.keys)
    }
}

/// The keys that a listener knows.
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

/// What has been seen of one handshake.
#[derive(Default)]
struct Handshake(Mutex<Option<Seen>>);

#[derive(Clone)]
struct Seen {
    /// `None`: nobody knows it.
    known: Option<(UsedPsk, Option<Arc<Entry>>)>,
}

impl PskTls {
    /// Compiles the table; says what is wrong with it in the document's problems. `None`: something is.
    pub(super) fn compile(
        tls: &At<ListenerTls>,
        psk: &At<model::Psk>,
        registry: Option<&Arc<Replica>>,
        document: &mut Document,
    ) -> Option<Self> {
        let keys = Arc::new(KnownPsks::compile(psk, registry, document)?);
        super::server::compile_versions(tls, document)?;
        let versions = tls.versions.as_ref().map_or(&[TlsVersion::V12, TlsVersion::V13][..], |at| &at.value);
        let alpn = tls.alpn.clone().unwrap_or_else(|| vec!["mqtt".to_owned()]);
        match context(&keys, versions, &alpn) {
            Ok(context) => Some(Self { context, keys }),
            Err(error) => {
                document.problems.error(&psk.span, format!("OpenSSL does not take this: {error}"));
                None
            }
        }
    }

    /// Reads the file again if it has changed; whether those who stand on it are to be judged again.
    pub(super) fn read_changed_file(&self, listener: &str) -> bool {
        self.keys.file.as_ref().is_some_and(|keys| keys.read_if_changed(listener))
    }

    /// Whether the file still has this key.
    pub(super) fn has(&self, identity: &str, of: u64) -> bool {
        let file = self.keys.file.as_ref();
        file.is_some_and(|keys| keys.load().get(identity).is_some_and(|key| mark(key) == of))
    }

    pub(super) fn registry(&self) -> Option<&Arc<Replica>> {
        self.keys.registry.as_ref()
    }

    /// Takes the handshake with a device to its end, within its deadline.
    pub(super) async fn accept(
        &self,
        socket: TcpStream,
        deadline: Duration,
    ) -> Result<Accepted, (Reject, Option<Unfinished>)> {
        let handshake = Arc::new(Handshake::default());
        let begin = || {
            let mut ssl = Ssl::new(&self.context)?;
            ssl.set_ex_data(*HANDSHAKE, Arc::clone(&handshake));
            SslStream::new(ssl, socket)
        };
        // Out of memory: nothing else fails here.
        let mut stream = begin().map_err(|_| (Reject::HandshakeFailed, None))?;
        let accepted = tokio::time::timeout(deadline, Pin::new(&mut stream).accept()).await;
        let seen = handshake.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        match accepted {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::debug!(%error, "TLS handshake failed");
                let reject = self.keys.perhaps_unavailable(reason(&error, seen.as_ref()));
                return Err((reject, Some(Unfinished(Rest::Psk(Box::new(stream))))));
            }
            Err(_) => return Err((Reject::HandshakeTimeout, None)),
        }
        let ssl = stream.ssl();
        let version = if ssl.version2() == Some(SslVersion::TLS1_3) { "TLSv1.3" } else { "TLSv1.2" };
        let cipher = ssl.current_cipher();
        // That an identity was looked up does not say that its key was used.
        let is_used = match version {
            "TLSv1.3" => ssl.session_reused(),
            _ => cipher.is_some_and(|cipher| cipher.name().contains("PSK")),
        };
        let Some((psk, device)) = seen.and_then(|seen| seen.known).filter(|_| is_used) else {
            return Err((Reject::HandshakeFailed, Some(Unfinished(Rest::Psk(Box::new(stream))))));
        };
        let ground = match &device {
            Some(entry) => KeyGround::Device(entry.ground(Used::Psk(psk.mark))),
            None => KeyGround::Psk(psk.identity.clone(), psk.mark),
        };
        let facts = TlsFacts {
            version,
            cipher: cipher.and_then(openssl::ssl::SslCipherRef::standard_name).unwrap_or_default().into(),
            sni: ssl.servername(openssl::ssl::NameType::HOST_NAME).map(Into::into),
            alpn: ssl.selected_alpn_protocol().and_then(|name| std::str::from_utf8(name).ok()).map(Into::into),
            resumed: false,
            psk: Some(psk),
            raw_key: None,
        };
        let stream = Stream::FromPskDevice(Box::new(stream));
        Ok(Accepted { stream, certificate: None, credential: None, facts, ground: Some(ground), device })
    }
}

impl KnownPsks {
    fn compile(psk: &At<model::Psk>, registry: Option<&Arc<Replica>>, document: &mut Document) -> Option<Self> {
        let registry = super::compile_registry(psk.registry.as_ref(), registry, document)?;
        let mut file = None;
        match (&psk.file, &psk.format) {
            (Some(at), Some(format)) => {
                let path = document.resolve(at);
                if is_exposed(&path) {
                    let message = format!("everybody on this machine can read the keys in {}", path.display());
                    document.problems.warning(&at.span, message).hint(format!("chmod 600 {}", path.display()));
                }
                let read = match format.value {
                    PskFormat::Hex => read_hex,
                    PskFormat::Raw => read_raw,
                };
                match FromFiles::open("pre-shared keys", path, read) {
                    Ok(keys) => {
                        let short = keys.load().values().filter(|key| key.len() < SHORT_KEY).count();
                        if short > 0 {
                            let message = format!("{short} of the keys have fewer than {SHORT_KEY} octets");
                            let hint = "whoever overhears a handshake can try them all; openssl rand -hex 32";
                            document.problems.warning(&at.span, message).hint(hint);
                        }
                        file = Some(keys);
                    }
                    Err(complaint) => {
                        document.problems.complain(&at.span, complaint);
                        return None;
                    }
                }
            }
            (Some(_), None) => {
                document.missing(&psk.span, "format", "\"hex\", as for mosquitto, or \"raw\", as for EMQX");
                return None;
            }
            (None, Some(format)) => {
                document.problems.error(&format.span, "`format` without effect: there is no `file`");
                return None;
            }
            (None, None) if registry.is_none() => {
                document.missing(&psk.span, "file", "lines of `identity:key`; or `registry = true`");
                return None;
            }
            (None, None) => {}
        }
        Some(Self { file, registry })
    }

    /// An identity that nobody knows may be one of the registry, if that cannot be asked.
    fn perhaps_unavailable(&self, reject: Reject) -> Reject {
        super::perhaps_unavailable(reject, Reject::UnknownPsk, self.registry.as_ref())
    }

    fn look_up(&self, identity: &str) -> Option<(SecretKey, Option<Arc<Entry>>)> {
        let of_file = self.file.as_ref().and_then(|keys| keys.load().get(identity).cloned());
        let of_registry = || {
            let entry = self.registry.as_ref()?.by_psk(identity)?;
            let key = Zeroizing::new(entry.psk()?.1.into());
            Some((key, Some(entry)))
        };
        of_file.map(|key| (key, None)).or_else(of_registry)
    }

    /// Puts the key of an identity into `key`, and notes whose it is.
    fn hand_over(
        &self,
        ssl: &SslRef,
        identity: Option<&[u8]>,
        key: &mut [u8],
    ) -> Result<usize, openssl::error::ErrorStack> {
        let identity = identity.and_then(|identity| std::str::from_utf8(identity).ok());
        let found = identity.and_then(|identity| Some((identity, self.look_up(identity)?)));
        let seen = match found {
            Some((identity, (secret, device))) if secret.len() <= key.len() => {
                key[..secret.len()].copy_from_slice(&secret);
                let psk = UsedPsk { identity: identity.into(), mark: mark(&secret) };
                (secret.len(), Seen { known: Some((psk, device)) })
            }
            _ => {
                let len = RANDOM_KEY.min(key.len());
                rand_bytes(&mut key[..len])?;
                (len, Seen { known: None })
            }
        };
        if let Some(handshake) = ssl.ex_data(*HANDSHAKE) {
            *handshake.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen.1);
        }
        Ok(seen.0)
    }
}

fn context(
    keys: &Arc<KnownPsks>,
    versions: &[TlsVersion],
    alpn: &[String],
) -> Result<SslContext, openssl::error::ErrorStack> {
    let mut context = SslContextBuilder::new(SslMethod::tls_server())?;
    let number = |version: &TlsVersion| match version {
        TlsVersion::V12 => SslVersion::TLS1_2,
        TlsVersion::V13 => SslVersion::TLS1_3,
    };
    let has_12 = versions.contains(&TlsVersion::V12);
    context.set_min_proto_version(versions.iter().map(number).find(|_| !has_12).or(Some(SslVersion::TLS1_2)))?;
    let has_13 = versions.contains(&TlsVersion::V13);
    context.set_max_proto_version(Some(if has_13 { SslVersion::TLS1_3 } else { SslVersion::TLS1_2 }))?;
    context.set_cipher_list(CIPHERS)?;
    context.set_ciphersuites(CIPHER_SUITES)?;
    context.set_options(
        SslOptions::NO_TICKET
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_COMPRESSION
            | SslOptions::CIPHER_SERVER_PREFERENCE,
    );
    context.set_num_tickets(0)?;
    context.set_session_cache_mode(SslSessionCacheMode::OFF);
    // An idle session holds no buffer.
    context.set_mode(SslMode::RELEASE_BUFFERS);
    let keys = Arc::clone(keys);
    context.set_psk_server_callback(move |ssl, identity, key| keys.hand_over(ssl, identity, key));
    if !alpn.is_empty() {
        let ours = alpn.to_vec();
        context.set_alpn_select_callback(move |_, offered| {
            let chosen = ours.iter().find_map(|name| protocols(offered).find(|theirs| *theirs == name.as_bytes()));
            chosen.ok_or(AlpnError::ALERT_FATAL)
        });
    }
    Ok(context.build())
}

/// The names in a client's list: each behind its length [RFC 7301, 3.1].
fn protocols(mut list: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, rest) = list.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*len))?;
        list = rest;
        Some(name)
    })
}

/// The reason in the log for a handshake that failed.
fn reason(error: &openssl::ssl::Error, seen: Option<&Seen>) -> Reject {
    let Some(stack) = error.ssl_error() else { return Reject::HandshakeClosed };
    let text = stack.errors().first().and_then(openssl::error::Error::reason).unwrap_or_default();
    match text {
        "unsupported protocol" | "version too low" => Reject::TlsVersion,
        "wrong version number" | "http request" | "https proxy request" | "packet length too long" => Reject::NotTls,
        "no shared cipher" | "no application protocol" | "no suitable key share" | "no suitable groups" => {
            Reject::TlsParameters
        }
        // Of what else can go wrong once the key was looked up, there is only that it is another one.
        _ => match seen {
            Some(Seen { known: None }) => Reject::UnknownPsk,
            Some(Seen { known: Some(_) }) => Reject::WrongPsk,
            None => Reject::HandshakeFailed,
        },
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
                .and_then(portcullis_registry::from_hex)
                .ok_or("the key is not in hexadecimal; is `format` the right one?")?,
        };
        if key.is_empty() || key.len() > MAX_KEY {
            return Err(format!("a key has 1 to {MAX_KEY} octets, this one {}", key.len()));
        }
        if identity.len() > MAX_IDENTITY {
            return Err(format!("an identity has at most {MAX_IDENTITY} bytes"));
        }
        match keys.insert(identity.into(), Zeroizing::new(key.as_slice().into())) {
            Some(_) => Err(format!("the identity `{}` is there twice", identity.escape_debug())),
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
    fn files_of_both_habits() {
        let hex = read_text(b"# a comment\n\na:00ff\r\nb:0A0b \n", PskFormat::Hex).unwrap();
        assert_eq!(hex, [("a".to_owned(), vec![0, 255]), ("b".to_owned(), vec![10, 11])]);
        let raw = read_text(b"a:00ff\nb:x:y \n\nc:\xff\xfe", PskFormat::Raw).unwrap();
        let expected = [("a", b"00ff".to_vec()), ("b", b"x:y ".to_vec()), ("c", vec![255, 254])];
        assert_eq!(raw, expected.map(|(identity, key)| (identity.to_owned(), key)));
        for wrong in ["a", "a:", ":00", "a:0", "a:xy", "a:00\na:01"] {
            let error = read_text(wrong.as_bytes(), PskFormat::Hex).unwrap_err();
            assert!(error.contains("line ") && !error.contains("xy"), "{error}");
        }
    }
}
