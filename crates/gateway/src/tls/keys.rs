//! The gateway's own certificates and private keys. Enters: PEM files and PKCS#11 URIs. Leaves: the certificate for a
//! server name, with a stapled OCSP response. Follows the files: a pair that cannot be used replaces nothing.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use pkcs8::EncryptedPrivateKeyInfo;
#[cfg(feature = "pkcs11")]
use portcullis_pkcs11::TokenUri;
use rustls::SignatureScheme;
use rustls::pki_types::{CertificateDer, DnsName, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use webpki::EndEntityCert;

use super::server_chain::warn_of_unacceptable;
use crate::config::tables::{CertificateFiles, CertificateTls, PrivateKey};
use crate::config::{Complaint, Diagnostics, Reported, Secret, Setting, warn_if_exposed};
use crate::fetch::Validators;
use crate::files::{KeyFile, read_chain, read_private_key, warn_if_expired};
use crate::outcome::describe_webpki;
use crate::peer::Certificate;
use crate::pki::RevocationStore;
use crate::refresh::{FromFiles, Pace, Refreshed, Remote};
use crate::util::clock::now;
use crate::util::crypto::provider;
use crate::util::weak_map::WeakMap;

/// An OCSP response is no longer stapled this many seconds before its nextUpdate: clients' clocks may be ahead.
const STAPLE_MARGIN: i64 = 30;
/// The shortest interval between two requests for an OCSP response.
const STAPLE_RETRY: Duration = Duration::from_secs(10);

/// The certificates of a listener.
#[derive(Debug)]
pub(super) struct ServerKeys {
    current: FromFiles<BySni>,
    store: Arc<KeyStore>,
}

/// The state of a listener's keys that survives reloads.
#[derive(Debug, Default)]
pub(super) struct KeyStore {
    /// By the server's certificate in DER.
    staples: WeakMap<Vec<u8>, Refreshed<Staple>>,
    /// Set once the listener has served with a configuration.
    is_in_use: AtomicBool,
}

/// The location of a certificate chain and its key.
#[derive(Clone, Debug)]
struct Files {
    chain: PathBuf,
    key: KeySource,
}

/// The location of a private key.
#[derive(Clone, Debug)]
pub(super) enum KeySource {
    File(PathBuf, Option<Secret>),
    #[cfg(feature = "pkcs11")]
    Token(Box<TokenUri>),
}

impl KeySource {
    /// Takes the location from the settings, and warns if other users can read the file.
    ///
    /// # Errors
    /// A PKCS#11 URI is invalid; the problem was reported.
    pub(super) fn open(settings: &Setting<PrivateKey>, diagnostics: &mut Diagnostics) -> Result<Self, Reported> {
        match &settings.value {
            PrivateKey::File(path, passphrase) => {
                warn_if_exposed(settings, path, "the private key", diagnostics);
                Ok(Self::File(path.clone(), passphrase.clone()))
            }
            #[cfg(feature = "pkcs11")]
            PrivateKey::Pkcs11(uri, directory) => match TokenUri::parse(uri.expose(), |path| directory.join(path)) {
                Ok(uri) => Ok(Self::Token(Box::new(uri))),
                // The line is not shown: the URI may contain the PIN.
                Err(error) => {
                    let complaint = Complaint::new(error.to_string()).hint(error.hint());
                    Err(diagnostics.error(settings, complaint.hide_line()))
                }
            },
            #[cfg(not(feature = "pkcs11"))]
            PrivateKey::Pkcs11(..) => {
                let complaint = Complaint::new("this binary was built without PKCS#11").hide_line();
                Err(diagnostics.error(settings, complaint.hint("build it with --features pkcs11")))
            }
        }
    }

    #[cfg_attr(not(feature = "pkcs11"), expect(clippy::unnecessary_wraps, reason = "a token is no file"))]
    fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path, _) => Some(path),
            #[cfg(feature = "pkcs11")]
            Self::Token(_) => None,
        }
    }
}

impl Files {
    /// Reads the pair. At start, an expired certificate is better than none, as some devices do not check it. It never
    /// replaces one that is in use.
    fn read(&self, store: &KeyStore) -> Result<Arc<CertifiedKey>, Complaint> {
        let pair = read_pair(&self.chain, &self.key)?;
        if has_expired(&pair) && store.is_in_use.load(Ordering::Relaxed) {
            return Err(Complaint::new(format!("{} has expired", self.chain.display())));
        }
        Ok(pair)
    }
}

/// A certificate chain and its key, as handshakes use them.
#[derive(Debug)]
struct Pair {
    /// Includes the current OCSP staple.
    certified: ArcSwap<CertifiedKey>,
    /// `None`: no OCSP response is stapled.
    staple: Option<Arc<Refreshed<Staple>>>,
}

impl Pair {
    fn new(certified: Arc<CertifiedKey>, store: &KeyStore, staples: Option<&Arc<RevocationStore>>) -> Self {
        let staple = match (staples, certified.cert.as_slice()) {
            (Some(revocation), [leaf, issuer, ..]) => {
                let staple = Staple { revocation: Arc::clone(revocation), leaf: leaf.clone(), issuer: issuer.clone() };
                // Shared with the configuration before a reload and with earlier reads of the same certificate.
                Some(store.staples.get_or_insert_with(leaf.to_vec(), || Refreshed::new(staple)))
            }
            _ => None,
        };
        let this = Self { certified: ArcSwap::new(certified), staple };
        this.update_staple();
        this
    }

    fn refresh_staple(&self) {
        if let Some(staple) = &self.staple {
            staple.fetch_if_due(Duration::MAX);
        }
        self.update_staple();
    }

    /// Makes handshakes use the latest staple, or none if it is about to expire.
    fn update_staple(&self) {
        let staple = self.staple.as_ref().and_then(|staple| Option::clone(&staple.load()));
        let answer = staple.filter(|staple| now() + STAPLE_MARGIN < staple.1).map(|staple| staple.0.clone());
        let certified = self.certified.load();
        if certified.ocsp != answer {
            let CertifiedKey { cert, key, .. } = &**certified;
            let new = CertifiedKey { cert: cert.clone(), key: Arc::clone(key), ocsp: answer };
            self.certified.store(Arc::new(new));
        }
    }
}

/// The source of the OCSP response about one of the gateway's own certificates [RFC 6066, 8].
pub(super) struct Staple {
    revocation: Arc<RevocationStore>,
    leaf: CertificateDer<'static>,
    issuer: CertificateDer<'static>,
}

impl Remote for Staple {
    /// The response in DER, and its nextUpdate in seconds since 1970.
    type Value = (Vec<u8>, i64);
    const WHAT: &'static str = "OCSP staple";
    const PACE: Pace = Pace { min: STAPLE_RETRY, max_retry: STAPLE_RETRY };

    fn origin(&self) -> String {
        Certificate::from_der(&self.leaf).and_then(|certificate| certificate.subject.dn).unwrap_or_default()
    }

    async fn fetch(&self, _: &Validators) -> Result<Option<(Self::Value, Validators)>, String> {
        let answer = self.revocation.ocsp_answer_about(&self.leaf, &self.issuer).await?;
        Ok(Some((answer, Validators::default())))
    }

    fn good_for(&self, (_, until): &Self::Value) -> Duration {
        // Half the remaining validity: the responder may be slow, or down for a while.
        Duration::from_secs(((until - now()) / 2).max(0).unsigned_abs())
    }
}

impl ServerKeys {
    /// Reads all pairs that the settings name.
    ///
    /// # Errors
    /// A pair cannot be used; the problem was reported.
    pub(super) fn open(
        settings: &CertificateTls,
        store: &Arc<KeyStore>,
        revocation: &Arc<RevocationStore>,
        diagnostics: &mut Diagnostics,
    ) -> Result<Self, Reported> {
        let certificates = &settings.certificates;
        let open = |files: &CertificateFiles, diagnostics: &mut Diagnostics| {
            warn_if_expired(certificates, &files.chain, diagnostics);
            KeySource::open(&files.key, diagnostics).map(|key| Files { chain: files.chain.clone(), key })
        };
        let files: Vec<Result<Files, Reported>> = certificates.iter().map(|files| open(files, diagnostics)).collect();
        let files: Vec<Files> = files.into_iter().collect::<Result<_, _>>()?;
        let paths = files.iter().flat_map(|files| [Some(files.chain.clone()), files.key.file().map(Path::to_owned)]);
        let (paths, to_read, of_listener) = (paths.flatten().collect(), files.clone(), Arc::clone(store));
        let staples = settings.stapling.then(|| Arc::clone(revocation));
        let read = move || BySni::read(&to_read, &of_listener, staples.as_ref());
        let current = FromFiles::open_all("certificate and key", paths, read).map_err(|first| {
            // Report the problems of every pair, not only of the first.
            for (files, settings) in files.iter().zip(&certificates.value) {
                let Err(complaint) = files.read(store) else { continue };
                match read_chain(&files.chain) {
                    Ok(_) => diagnostics.error(&settings.key, complaint),
                    Err(_) => diagnostics.error(certificates, complaint),
                };
            }
            diagnostics.already_reported_or(certificates, first)
        })?;
        let client_ca = settings.client.as_ref().map(|client| client.ca.as_path());
        for pair in &current.load().pairs {
            warn_of_unacceptable(&pair.certified.load().cert, client_ca, certificates, diagnostics);
        }
        if settings.stapling && current.load().pairs.iter().any(|pair| pair.staple.is_none()) {
            let message = "`ocsp_stapling` needs the issuer's certificate after the server's in the certificate file";
            diagnostics.warning(certificates, message);
        }
        Ok(Self { current, store: Arc::clone(store) })
    }

    pub(super) fn set_in_use(&self) {
        self.store.is_in_use.store(true, Ordering::Relaxed);
    }

    /// Starts to fetch the OCSP responses that are due, in the background. Handshakes use those that have arrived, and no
    /// longer those that are about to expire.
    pub(super) fn refresh_staples(&self) {
        self.current.load().pairs.iter().for_each(|pair| pair.refresh_staple());
    }

    /// Reads all pairs again if a file has changed. The old pairs stay in use if a pair cannot be parsed, has expired, or
    /// does not match, for instance because only one of its two files has been replaced yet.
    pub(super) fn read_if_changed(&self, listener: &str) {
        self.current.read_if_changed(listener);
    }

    /// The subject of each certificate, and the earliest notAfter in its chain, in seconds since 1970.
    pub(super) fn expiries(&self) -> Vec<(String, i64)> {
        let current = self.current.load();
        let subject = |pair: &CertifiedKey| Certificate::from_der(pair.cert.first()?)?.subject.dn;
        let expiry = |pair: &CertifiedKey| Some((subject(pair).unwrap_or_default(), expires(pair)?));
        current.pairs.iter().filter_map(|pair| expiry(&pair.certified.load())).collect()
    }
}

impl ResolvesServerCert for ServerKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().find(hello.server_name(), hello.signature_schemes())
    }
}

/// Reads a certificate chain and its key, and checks that they match.
pub(super) fn read_pair(chain: &Path, key: &KeySource) -> Result<Arc<CertifiedKey>, Complaint> {
    let certificates = read_chain(chain)?;
    EndEntityCert::try_from(&certificates[0]).map_err(|error| {
        Complaint::new(format!("{}: the certificate cannot be used: {}", chain.display(), describe_webpki(&error)))
    })?;
    let (path, passphrase) = match key {
        KeySource::File(path, passphrase) => (path, passphrase),
        #[cfg(feature = "pkcs11")]
        KeySource::Token(uri) => {
            let key = portcullis_pkcs11::signing_key(uri, &certificates[0], &provider());
            let key = key.map_err(|error| match error.hint() {
                Some(hint) => Complaint::new(error.to_string()).hint(hint),
                None => Complaint::new(error.to_string()),
            })?;
            return Ok(Arc::new(CertifiedKey::new(certificates, key)));
        }
    };
    let der = read_key(path, passphrase.as_ref())?;
    match CertifiedKey::from_der(certificates, der, &provider()) {
        Ok(pair) => Ok(Arc::new(pair)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let message = format!("{} is not the key of {}", path.display(), chain.display());
            Err(Complaint::new(message).hint("the server's own certificate must be the first in the certificate file"))
        }
        Err(_) => Err(Complaint::new(format!("{} has a key that is not supported", path.display()))
            .hint("RSA of 2048 to 8192 bits, ECDSA with P-256, P-384 or P-521, or Ed25519")),
    }
}

/// Reads a private key from a PEM file: PKCS#8, encrypted PKCS#8, SEC1 or PKCS#1.
fn read_key(path: &Path, passphrase: Option<&Secret>) -> Result<PrivateKeyDer<'static>, Complaint> {
    let key = read_private_key(path)?;
    match (key, passphrase) {
        (KeyFile::Encrypted(der), Some(passphrase)) => {
            let decrypted = EncryptedPrivateKeyInfo::try_from(der.as_slice())
                .and_then(|info| info.decrypt(passphrase.expose()))
                .map_err(|_| {
                    let complaint = Complaint::new(format!("{} cannot be decrypted", path.display()));
                    complaint.hint("the passphrase is probably wrong; or use PBES2 with AES: openssl pkcs8 -topk8")
                })?;
            Ok(PrivateKeyDer::Pkcs8(decrypted.as_bytes().to_vec().into()))
        }
        (KeyFile::Encrypted(_), None) => Err(Complaint::new(format!("{} is encrypted", path.display()))
            .hint("set private_key_passphrase = \"${FILE:passphrase}\"")),
        (KeyFile::Plain(_), Some(_)) => Err(Complaint::new(format!("{} is not encrypted", path.display()))
            .hint("remove `private_key_passphrase`, or encrypt the key: openssl pkcs8 -topk8")),
        (KeyFile::Plain(der), None) => Ok(der),
    }
}

fn has_expired(pair: &CertifiedKey) -> bool {
    expires(pair).is_some_and(|expires| expires < now())
}

/// The earliest notAfter in a chain, in seconds since 1970.
fn expires(pair: &CertifiedKey) -> Option<i64> {
    pair.cert.iter().filter_map(|der| Certificate::from_der(der)).map(|certificate| certificate.not_after).min()
}

/// Selects the certificate by the server name that the client requests [RFC 6066, 3]. The first one is the default.
#[derive(Debug)]
struct BySni {
    default: Vec<Arc<Pair>>,
    /// By lower-case name, in the order of the configuration; `*.example.com` has the key `.example.com`.
    names: HashMap<String, Vec<Arc<Pair>>>,
    pairs: Vec<Arc<Pair>>,
}

impl BySni {
    fn read(files: &[Files], store: &KeyStore, staples: Option<&Arc<RevocationStore>>) -> Result<Self, Complaint> {
        let pair = |files: &Files| files.read(store).map(|read| Arc::new(Pair::new(read, store, staples)));
        let pairs: Vec<Arc<Pair>> = files.iter().map(pair).collect::<Result<_, _>>()?;
        let mut names: HashMap<String, Vec<Arc<Pair>>> = HashMap::new();
        for pair in &pairs {
            for name in dns_names(&pair.certified.load()) {
                let name = name.to_ascii_lowercase();
                let name = name.strip_prefix('*').map(str::to_owned).unwrap_or(name);
                names.entry(name).or_default().push(Arc::clone(pair));
            }
        }
        let first = pairs.first().ok_or_else(|| Complaint::new("no certificate is configured"))?;
        // The first certificate serves other names, and so do those for the same names with another kind of key.
        let of_first = dns_names(&first.certified.load());
        let is_alike = |pair: &&Arc<Pair>| Arc::ptr_eq(pair, first) || dns_names(&pair.certified.load()) == of_first;
        let default = pairs.iter().filter(is_alike).cloned().collect();
        Ok(Self { default, names, pairs })
    }

    /// The certificate for a name, of which the client can verify signatures of one of these schemes; the first one for
    /// the name if there is none, so that the handshake fails for that reason.
    fn find(&self, name: Option<&str>, schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let pairs = name.and_then(|name| self.named(name)).unwrap_or(&self.default);
        let can = |pair: &&Arc<Pair>| pair.certified.load().key.choose_scheme(schemes).is_some();
        pairs.iter().find(can).or_else(|| pairs.first()).map(|pair| pair.certified.load_full())
    }

    fn named(&self, name: &str) -> Option<&Vec<Arc<Pair>>> {
        // rustls has already rejected invalid names.
        let name = DnsName::try_from(name).ok()?.to_lowercase_owned();
        let name = name.as_ref();
        let wildcard = || name.find('.').and_then(|dot| self.names.get(&name[dot..]));
        self.names.get(name).or_else(wildcard)
    }
}

fn dns_names(pair: &CertifiedKey) -> Vec<String> {
    pair.cert
        .first()
        .and_then(|der| Certificate::from_der(der))
        .map(|certificate| certificate.san.dns)
        .unwrap_or_default()
}
