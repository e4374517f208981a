//! The gateway's own certificates towards devices, and their private keys.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use rustls::pki_types::DnsName;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::{self, PemObject};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::Certificate;
use super::resumption::now;
use crate::config::model::{Certificates, ListenerTls};
use crate::config::{At, Complaint, Document, is_exposed};
use crate::crypto::provider;
use crate::files::{Stamp, read_chain, unreadable};

/// The certificates of a listener. They follow their files.
#[derive(Debug)]
pub(super) struct ServerKeys {
    files: Vec<Files>,
    /// Of the files, when they were last read.
    stamps: Mutex<Vec<Option<Stamp>>>,
    current: ArcSwap<BySni>,
}

/// Where a certificate and its key are.
#[derive(Clone, Debug)]
struct Files {
    chain: PathBuf,
    key: PathBuf,
}

impl ServerKeys {
    /// Reads all pairs that the table names; says what is wrong with them in the document's problems. `None`:
    /// something is.
    pub(super) fn compile(tls: &At<ListenerTls>, document: &mut Document) -> Option<Self> {
        let Some(certificate) = &tls.certificate else {
            document.missing(&tls.span, "certificate", "a PEM file, the server's own first");
            return None;
        };
        let pairs = match (&certificate.value, &tls.private_key) {
            (Certificates::One(chain), Some(key)) => vec![(chain, key.value.clone())],
            (Certificates::One(_), None) => {
                document.missing(&tls.span, "private_key", "a PEM file, the key of the certificate");
                return None;
            }
            (Certificates::Many(_), Some(key)) => {
                let problem = document.problems.error(&key.span, "each certificate in the list has its own key");
                problem.hint("write `private_key` into the list's tables");
                return None;
            }
            (Certificates::Many(pairs), None) => {
                pairs.iter().map(|pair| (&pair.certificate, pair.private_key.clone())).collect()
            }
        };
        if pairs.is_empty() {
            document.problems.error(&certificate.span, "the list of certificates is empty");
            return None;
        }
        let mut read = Vec::new();
        let mut files = Vec::new();
        for (chain, key) in pairs {
            let (chain, key) = (document.resolve(chain), document.resolve(&key));
            warn_if_exposed(&key, &certificate.span, document);
            files.push(Files { chain, key });
        }
        let stamps = stamps(&files);
        for Files { chain, key } in &files {
            match read_pair(chain, key) {
                Ok(pair) => read.push(pair),
                Err(complaint) => document.problems.complain(&certificate.span, complaint),
            }
        }
        let current = ArcSwap::from_pointee(BySni::new(&read)?);
        (read.len() == files.len()).then_some(Self { files, stamps: Mutex::new(stamps), current })
    }

    /// Reads all pairs again if a file has changed. One that cannot be used, of which certificate and key do not belong
    /// together, because only one of them has been replaced yet, or which has expired, changes nothing.
    pub(super) fn read_if_changed(&self, listener: &str) {
        let stamps = stamps(&self.files);
        {
            let mut last = self.stamps.lock().unwrap_or_else(PoisonError::into_inner);
            if *last == stamps {
                return;
            }
            *last = stamps;
        }
        match self.read() {
            Ok(current) => {
                self.current.store(Arc::new(current));
                tracing::info!(listener, "certificate and key loaded");
            }
            Err(complaint) => {
                tracing::error!(listener, "certificate and key: the last good ones stay: {}", complaint.message);
            }
        }
    }

    fn read(&self) -> Result<BySni, Complaint> {
        let mut pairs = Vec::new();
        for Files { chain, key } in &self.files {
            let pair = read_pair(chain, key)?;
            if expires(&pair).is_some_and(|expires| expires < now()) {
                return Err(Complaint::new(format!("{} has expired", chain.display())));
            }
            pairs.push(pair);
        }
        BySni::new(&pairs).ok_or_else(|| Complaint::new("there is none"))
    }

    /// When the first of them expires, in seconds since 1970.
    pub(super) fn expires(&self) -> Option<i64> {
        self.current.load().pairs.iter().filter_map(|pair| expires(pair)).min()
    }
}

impl ResolvesServerCert for ServerKeys {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load().find(hello.server_name()))
    }
}

fn stamps(files: &[Files]) -> Vec<Option<Stamp>> {
    files.iter().flat_map(|files| [Stamp::of(&files.chain), Stamp::of(&files.key)]).collect()
}

/// A chain and its key, which must belong together.
pub(super) fn read_pair(chain: &Path, key: &Path) -> Result<Arc<CertifiedKey>, Complaint> {
    let certificates = read_chain(chain)?;
    let der = PrivateKeyDer::from_pem_file(key).map_err(|error| match error {
        pem::Error::NoItemsFound => Complaint::new(format!("{} contains no private key", key.display()))
            .hint("PKCS#8, SEC1 or PKCS#1 without a passphrase is wanted"),
        error => unreadable(key, &error),
    })?;
    match CertifiedKey::from_der(certificates, der, &provider()) {
        Ok(pair) => Ok(Arc::new(pair)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let message = format!("{} is not the key of {}", key.display(), chain.display());
            Err(Complaint::new(message).hint("the certificate file has to begin with the server's own certificate"))
        }
        Err(error) => Err(Complaint::new(format!("{} cannot be used: {error}", key.display()))),
    }
}

/// Warns of a private key that everybody can read.
pub(super) fn warn_if_exposed(key: &Path, span: &Range<usize>, document: &mut Document) {
    if is_exposed(key) {
        let message = format!("everybody on this machine can read the private key {}", key.display());
        document.problems.warning(span, message).hint(format!("chmod 600 {}", key.display()));
    }
}

/// When the first certificate of a chain expires, in seconds since 1970.
fn expires(pair: &CertifiedKey) -> Option<i64> {
    pair.cert.iter().filter_map(|der| Certificate::from_der(der)).map(|certificate| certificate.not_after).min()
}

/// Chooses the certificate by the name the client asks for; the first is for all names that none has.
#[derive(Debug)]
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
