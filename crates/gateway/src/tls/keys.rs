//! The gateway's own certificates towards devices, and their private keys.

use std::collections::HashMap;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use pkcs8::EncryptedPrivateKeyInfo;
#[cfg(feature = "pkcs11")]
use portcullis_pkcs11::TokenUri;
use rustls::pki_types::DnsName;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use zeroize::Zeroizing;

use super::Certificate;
use super::resumption::Memory;
use crate::clock::now;
use crate::config::model::{Certificates, ListenerTls};
use crate::config::{At, Complaint, Document, Secret, is_exposed};
use crate::crypto::provider;
use crate::files::{Follower, read_chain, unreadable};
use crate::trust::Knowledge;

/// An OCSP answer is taken away before it is out of date, for the sake of clocks that are ahead; in seconds.
const STAPLE_MARGIN: i64 = 30;
/// OCSP answers remembered over reloads.
const MAX_STAPLES: usize = 256;
/// An OCSP answer is not asked for more often.
const STAPLE_RETRY: Duration = Duration::from_secs(10);

/// The certificates of a listener. They follow their files.
#[derive(Debug)]
pub(super) struct ServerKeys {
    files: Vec<Files>,
    follower: Follower,
    current: ArcSwap<BySni>,
    /// When to ask for each pair's OCSP answer, in seconds since 1970; `None`: handshakes bring none along.
    staples: Option<Mutex<Vec<Staple>>>,
    memory: Arc<Memory>,
}

/// An OCSP answer about a certificate of the gateway's own [RFC 6066, 8].
#[derive(Clone, Copy, Debug, Default)]
struct Staple {
    /// When to ask for another one; `None`: at once.
    next: Option<Instant>,
    /// When it is to be taken away, in seconds since 1970; 0: there is none.
    until: i64,
}

/// Where a certificate and its key are.
#[derive(Clone, Debug)]
struct Files {
    chain: PathBuf,
    key: KeySource,
}

/// Where a private key is.
#[derive(Clone, Debug)]
pub(super) enum KeySource {
    File(PathBuf, Option<Secret>),
    #[cfg(feature = "pkcs11")]
    Token(Box<TokenUri>),
}

impl KeySource {
    /// Reads what the configuration says of a key at `span`: a path, or a PKCS#11 URI; warns of a file that everybody
    /// can read. `None`: it is wrong.
    pub(super) fn compile(
        text: &str,
        passphrase: Option<&Secret>,
        span: &Range<usize>,
        document: &mut Document,
    ) -> Option<Self> {
        // A scheme's case says nothing [RFC 3986, 3.1]; taken for a path, its PIN would be shown.
        if text.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("pkcs11:")) {
            #[cfg(feature = "pkcs11")]
            match TokenUri::parse(text, |path| document.resolve(path)) {
                Ok(uri) => return Some(Self::Token(Box::new(uri))),
                // It may have the PIN in it.
                Err(error) => document.problems.error(span, error.to_string()).hide_line().hint(error.hint()),
            };
            #[cfg(not(feature = "pkcs11"))]
            document.problems.error(span, "this gateway was built without PKCS#11").hint("--features pkcs11");
            return None;
        }
        let path = document.resolve(Path::new(text));
        if is_exposed(&path) {
            let message = format!("everybody on this machine can read the private key {}", path.display());
            document.problems.warning(span, message).hint(format!("chmod 600 {}", path.display()));
        }
        Some(Self::File(path, passphrase.cloned()))
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

impl ServerKeys {
    /// Reads all pairs that the table names; says what is wrong with them in the document's problems. `None`:
    /// something is.
    pub(super) fn compile(tls: &At<ListenerTls>, memory: &Arc<Memory>, document: &mut Document) -> Option<Self> {
        let Some(certificate) = &tls.certificate else {
            document.missing(&tls.span, "certificate", "a PEM file, the server's own first");
            return None;
        };
        let passphrase = tls.private_key_passphrase.as_ref();
        let pairs: Vec<(&PathBuf, String, Option<&Secret>)> = match (&certificate.value, &tls.private_key) {
            (Certificates::One(chain), Some(key)) => {
                vec![(chain, key.value.clone(), passphrase.map(|passphrase| &passphrase.value))]
            }
            (Certificates::One(_), None) => {
                document.missing(&tls.span, "private_key", "a PEM file, the key of the certificate");
                return None;
            }
            (Certificates::Many(_), Some(key)) => {
                let problem = document.problems.error(&key.span, "each certificate in the list has its own key");
                problem.hint("write `private_key` into the list's tables");
                return None;
            }
            (Certificates::Many(pairs), None) => pairs
                .iter()
                .map(|pair| (&pair.certificate, pair.private_key.clone(), pair.private_key_passphrase.as_ref()))
                .collect(),
        };
        if pairs.is_empty() {
            document.problems.error(&certificate.span, "the list of certificates is empty");
            return None;
        }
        let mut files = Vec::new();
        let count = pairs.len();
        for (chain, key, passphrase) in pairs {
            let chain = document.resolve(chain);
            let span = tls.private_key.as_ref().map_or(&certificate.span, |key| &key.span);
            files.extend(KeySource::compile(&key, passphrase, span, document).map(|key| Files { chain, key }));
        }
        if files.len() != count {
            return None;
        }
        let follower = Follower::default();
        let mut complaints = Vec::new();
        let mut read = Vec::new();
        let read_all = || {
            for Files { chain, key } in &files {
                match read_pair(chain, key) {
                    // At first, better than nothing: some devices do not look. Later, there is a better one.
                    Ok(pair) if has_expired(&pair) && memory.is_in_use.load(Ordering::Relaxed) => {
                        complaints.push(Complaint::new(format!("{} has expired", chain.display())));
                    }
                    Ok(pair) => read.push(pair),
                    Err(complaint) => complaints.push(complaint),
                }
            }
            complaints.first().map_or(Ok(()), |complaint| Err(complaint.message.clone()))
        };
        // All that is wrong is said below.
        let _ = follower.read_if_changed(&paths(&files), true, read_all);
        let is_good = complaints.is_empty();
        for complaint in complaints {
            document.problems.complain(&certificate.span, complaint);
        }
        let current = ArcSwap::from_pointee(BySni::new(&read)?);
        if !is_good {
            return None;
        }
        if tls.ocsp_stapling {
            let cannot = read.iter().filter(|pair| pair.cert.len() < 2).count();
            if cannot > 0 {
                let message = "`ocsp_stapling` needs the issuer's certificate behind the server's own";
                document.problems.warning(&certificate.span, message);
            }
        }
        let staples = tls.ocsp_stapling.then(|| Mutex::new(vec![Staple::default(); read.len()]));
        let this = Self { files, follower, current, staples, memory: Arc::clone(memory) };
        this.remember_staples();
        Some(this)
    }

    /// Puts OCSP answers that are known to the certificates they are about.
    fn remember_staples(&self) {
        let Some(mut staples) = self.staples() else { return };
        let known = self.memory.staples.lock().unwrap_or_else(PoisonError::into_inner);
        for (place, pair) in self.current.load_full().pairs.iter().enumerate() {
            let answer = pair.cert.first().and_then(|leaf| known.get(leaf.as_ref()));
            if let Some((answer, until)) = answer.filter(|(_, until)| now() + STAPLE_MARGIN < *until) {
                self.current.rcu(|current| current.with_staple(place, Some(answer.clone())));
                staples[place] = Staple { next: None, until: *until };
            }
        }
    }

    pub(super) fn is_served_by(&self) {
        self.memory.is_in_use.store(true, Ordering::Relaxed);
    }

    /// Takes away OCSP answers that are about to be out of date; returns whether others are to be asked for.
    pub(super) fn check_staples(&self) -> bool {
        let Some(mut staples) = self.staples() else { return false };
        let now = now();
        for (place, staple) in staples.iter_mut().enumerate() {
            if staple.until != 0 && now + STAPLE_MARGIN >= staple.until {
                self.current.rcu(|current| current.with_staple(place, None));
                staple.until = 0;
            }
        }
        staples.iter().any(Staple::is_due)
    }

    /// Asks for OCSP answers whose time has come.
    pub(super) async fn fetch_staples(&self, knowledge: &Knowledge) {
        let due: Vec<usize> = match self.staples() {
            Some(mut staples) => {
                let due = staples.iter_mut().enumerate().filter(|(_, staple)| staple.is_due());
                // Not again while this is under way.
                due.map(|(place, staple)| {
                    staple.next = Some(Instant::now() + STAPLE_RETRY);
                    place
                })
                .collect()
            }
            None => return,
        };
        for place in due {
            let current = self.current.load_full();
            let Some(pair) = current.pairs.get(place) else { continue };
            let [leaf, issuer, ..] = pair.cert.as_slice() else { continue };
            match knowledge.ocsp_answer_about(leaf, issuer).await {
                Ok((answer, until)) => {
                    let Some(mut staples) = self.staples() else { return };
                    // The pair may have been replaced meanwhile.
                    let newest = self.current.load_full();
                    if newest.pairs.get(place).is_some_and(|it| it.cert == pair.cert) {
                        self.current.store(Arc::new(newest.with_staple(place, Some(answer.clone()))));
                        let mut known = self.memory.staples.lock().unwrap_or_else(PoisonError::into_inner);
                        if known.len() >= MAX_STAPLES {
                            known.clear();
                        }
                        known.insert(leaf.to_vec(), (answer, until));
                        drop(known);
                        let half = Duration::from_secs(((until - now()) / 2).max(0).unsigned_abs());
                        staples[place] = Staple { next: Some(Instant::now() + half.max(STAPLE_RETRY)), until };
                    }
                }
                Err(error) => tracing::warn!("OCSP stapling: {error}"),
            }
        }
    }

    fn staples(&self) -> Option<MutexGuard<'_, Vec<Staple>>> {
        self.staples.as_ref().map(|staples| staples.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads all pairs again if a file has changed. One that cannot be used, of which certificate and key do not belong
    /// together, because only one of them has been replaced yet, or which has expired, changes nothing.
    pub(super) fn read_if_changed(&self, listener: &str) {
        let read = || self.read().map_err(|complaint| complaint.message);
        match self.follower.read_if_changed(&paths(&self.files), false, read) {
            Some(Ok(current)) => {
                // The lock of the staples is held: one that is on its way is of a pair that is being replaced.
                let staples = self.staples();
                self.current.store(Arc::new(current));
                if let Some(mut staples) = staples {
                    staples.fill(Staple::default());
                }
                tracing::info!(listener, "certificate and key loaded");
            }
            Some(Err(problem)) => {
                tracing::error!(listener, "certificate and key: the last good ones stay: {problem}");
            }
            None => {}
        }
    }

    fn read(&self) -> Result<BySni, Complaint> {
        let mut pairs = Vec::new();
        for Files { chain, key } in &self.files {
            let pair = read_pair(chain, key)?;
            if has_expired(&pair) {
                return Err(Complaint::new(format!("{} has expired", chain.display())));
            }
            pairs.push(pair);
        }
        BySni::new(&pairs).ok_or_else(|| Complaint::new("there is none"))
    }

    /// Whose each of them is, and when the first certificate of its chain expires, in seconds since 1970.
    pub(super) fn expiries(&self) -> Vec<(String, i64)> {
        let current = self.current.load();
        let subject = |pair: &CertifiedKey| Certificate::from_der(pair.cert.first()?)?.subject.dn;
        let expiry = |pair: &Arc<CertifiedKey>| Some((subject(pair).unwrap_or_default(), expires(pair)?));
        current.pairs.iter().filter_map(expiry).collect()
    }
}

impl Staple {
    fn is_due(&self) -> bool {
        self.next.is_none_or(|next| Instant::now() >= next)
    }
}

impl ResolvesServerCert for ServerKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().find(hello.server_name()))
    }
}

fn paths(files: &[Files]) -> Vec<&Path> {
    files.iter().flat_map(|files| [Some(files.chain.as_path()), files.key.file()]).flatten().collect()
}

/// A chain and its key, which must belong together.
pub(super) fn read_pair(chain: &Path, key: &KeySource) -> Result<Arc<CertifiedKey>, Complaint> {
    let certificates = read_chain(chain)?;
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
            Err(Complaint::new(message).hint("the certificate file has to begin with the server's own certificate"))
        }
        Err(error) => Err(Complaint::new(format!("{} cannot be used: {error}", path.display()))),
    }
}

/// A private key from a PEM file: PKCS#8, PKCS#8 under a passphrase, SEC1 or PKCS#1.
fn read_key(path: &Path, passphrase: Option<&Secret>) -> Result<PrivateKeyDer<'static>, Complaint> {
    let text = Zeroizing::new(fs::read(path).map_err(|error| unreadable(path, &pem::Error::Io(error)))?);
    let sections = ::pem::parse_many(&*text).unwrap_or_default();
    if sections.iter().any(|section| section.headers().get("Proc-Type").is_some_and(|kind| kind.contains("ENCRYPTED")))
    {
        let complaint = Complaint::new(format!("{} is encrypted in OpenSSL's old form", path.display()));
        return Err(complaint.hint("openssl pkcs8 -topk8 -in old.key -out new.key"));
    }
    let encrypted = sections.into_iter().find(|section| section.tag() == "ENCRYPTED PRIVATE KEY");
    match (encrypted, passphrase) {
        (Some(section), Some(passphrase)) => {
            let decrypted = EncryptedPrivateKeyInfo::try_from(section.contents())
                .and_then(|info| info.decrypt(passphrase.expose()))
                .map_err(|error| Complaint::new(format!("{} cannot be decrypted: {error}", path.display())))?;
            Ok(PrivateKeyDer::Pkcs8(decrypted.as_bytes().to_vec().into()))
        }
        (Some(_), None) => Err(Complaint::new(format!("{} is encrypted", path.display()))
            .hint("private_key_passphrase = \"${FILE:passphrase}\"")),
        (None, Some(_)) => Err(Complaint::new(format!("{} is not encrypted", path.display()))
            .hint("take `private_key_passphrase` out, or encrypt it: openssl pkcs8 -topk8")),
        (None, None) => PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
            pem::Error::NoItemsFound => Complaint::new(format!("{} contains no private key", path.display()))
                .hint("PKCS#8, SEC1 or PKCS#1 is wanted"),
            error => unreadable(path, &error),
        }),
    }
}

fn has_expired(pair: &CertifiedKey) -> bool {
    expires(pair).is_some_and(|expires| expires < now())
}

/// When the first certificate of a chain expires, in seconds since 1970.
fn expires(pair: &CertifiedKey) -> Option<i64> {
    pair.cert.iter().filter_map(|der| Certificate::from_der(der)).map(|certificate| certificate.not_after).min()
}

/// Chooses the certificate by the name the client asks for; the first is for all names that none has.
#[derive(Clone, Debug)]
struct BySni {
    first: Arc<CertifiedKey>,
    /// Lower-case names; `*.example.com` stands under `.example.com`.
    names: HashMap<String, Arc<CertifiedKey>>,
    pairs: Vec<Arc<CertifiedKey>>,
}

impl BySni {
    /// `None`: there are no pairs.
    fn new(pairs: &[Arc<CertifiedKey>]) -> Option<Self> {
        let mut names = HashMap::new();
        for pair in pairs {
            for name in dns_names(pair) {
                let name = name.to_ascii_lowercase();
                let name = name.strip_prefix('*').map(str::to_owned).unwrap_or(name);
                names.entry(name).or_insert_with(|| Arc::clone(pair));
            }
        }
        Some(Self { first: Arc::clone(pairs.first()?), names, pairs: pairs.to_vec() })
    }

    /// Itself, but for the OCSP answer of one pair.
    fn with_staple(&self, place: usize, answer: Option<Vec<u8>>) -> Self {
        let mut pairs = self.pairs.clone();
        if let Some(pair) = pairs.get_mut(place) {
            let CertifiedKey { cert, key, .. } = &**pair;
            *pair = Arc::new(CertifiedKey { cert: cert.clone(), key: Arc::clone(key), ocsp: answer });
        }
        Self::new(&pairs).unwrap_or_else(|| self.clone())
    }

    fn find(&self, name: Option<&str>) -> Arc<CertifiedKey> {
        Arc::clone(name.and_then(|name| self.named(name)).unwrap_or(&self.first))
    }

    fn named(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        // rustls lets no name through that is not a valid one.
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
