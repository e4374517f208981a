//! A small certificate authority in a folder: a root, an intermediate that signs, what it has issued, and what of it
//! is revoked.
//!
//! ```text
//! DIR/root.pem           the trust anchor: `client_ca` of a listener, `--cafile` of a client
//! DIR/root.key           to be kept elsewhere once the intermediate is there
//! DIR/intermediate.pem, intermediate.key
//! DIR/issued/NAME.pem    chain, leaf first
//! DIR/issued/NAME.key    unless the key never left its device
//! DIR/replaced/          certificates that were renewed, and keys that were
//! DIR/index.txt          everything issued, in OpenSSL's form
//! DIR/crl.pem            the CRLs of root and intermediate: `crl` of a listener
//! DIR/root.crl, intermediate.crl    the same in DER, to be published
//! DIR/authority.toml     what later certificates have in common
//! ```
//!
//! The folder is all the state there is. Private keys are written readable by their owner alone; of certificates and
//! keys nothing is ever written over.

mod crl;
mod error;
mod folder;
mod index;
mod reading;
mod template;

pub use error::Error;
pub use index::Reason;

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pkcs8::der::SecretDocument;
use pkcs8::{LineEnding, PrivateKeyInfo};
use rcgen::{
    BasicConstraints, Certificate, CertificateSigningRequestParams, DnType, Issuer, KeyPair, PublicKeyData,
    SignatureAlgorithm, SubjectPublicKeyInfo,
};
use serde::{Deserialize, Serialize};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use error::file_error;
use folder::{file_name, write_new, write_secret};
use index::Index;
use reading::{extension, first_pem, kind, line_of, names, parse, purpose, serial_of};

/// How an authority is to be made.
#[derive(Clone, Debug, Default)]
pub struct Init {
    /// Its name, in its certificates.
    pub name: String,
    /// Of its keys, and of those it makes.
    pub algorithm: Algorithm,
    /// Host names it may certify, and those below them; none: all.
    pub permit_dns: Vec<String>,
    /// Networks whose addresses it may certify; none: all.
    pub permit_ip: Vec<String>,
    /// Under which URL the folder's CRLs will be published.
    pub crl_url: Option<String>,
    /// Where an OCSP responder will answer.
    pub ocsp_url: Option<String>,
}

/// Of a key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(missing_docs, reason = "the names are the standards'")]
pub enum Algorithm {
    #[default]
    EcP256,
    EcP384,
    Ed25519,
}

impl Algorithm {
    fn key(self) -> Result<KeyPair, Error> {
        let algorithm: &'static SignatureAlgorithm = match self {
            Algorithm::EcP256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::EcP384 => &rcgen::PKCS_ECDSA_P384_SHA384,
            Algorithm::Ed25519 => &rcgen::PKCS_ED25519,
        };
        Ok(KeyPair::generate_for(algorithm)?)
    }
}

/// What all certificates of an authority have in common; kept in the folder.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Settings {
    algorithm: Algorithm,
    crl_url: Option<String>,
    ocsp_url: Option<String>,
}

impl Settings {
    /// Where a CRL file of the folder is published.
    fn crl(&self, file: &str) -> Option<String> {
        self.crl_url.as_ref().map(|url| format!("{}/{file}", url.trim_end_matches('/')))
    }
}

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server.
    Server,
    /// A device that connects.
    Device,
    /// Signing OCSP answers for the intermediate.
    Ocsp,
}

/// What is to be certified.
#[derive(Clone, Debug)]
pub struct Request {
    /// The common name; of a device, its client ID.
    pub name: String,
    /// The organisation, if there is to be one in the subject.
    pub organization: Option<String>,
    /// What for.
    pub purpose: Purpose,
    /// Alternative names: host names, addresses, URIs, mail addresses. Those of a server are what it is reached under.
    pub names: Vec<String>,
    /// How long.
    pub days: u32,
}

/// Files of an issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key, if it is here.
    pub key: Option<PathBuf>,
}

/// A certificate in the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file.
    pub path: PathBuf,
    /// Common name.
    pub name: String,
    /// Upper-case hex.
    pub serial: String,
    /// `root`, `intermediate`, `server`, `device` or `ocsp`.
    pub kind: &'static str,
    /// Seconds since 1970.
    pub not_after: i64,
    /// Whether and why it is revoked.
    pub revoked: Option<Reason>,
}

const ROOT_DAYS: i64 = 20 * 365;
const INTERMEDIATE_DAYS: i64 = 10 * 365;
/// Of the first CRL of the intermediate.
pub const CRL_DAYS: u32 = 30;

/// A certificate authority in a folder.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes an authority: root, intermediate, and a CRL of each.
    ///
    /// # Errors
    /// There is one already, a name cannot be certified, or the folder cannot be written.
    pub fn init(dir: &Path, init: &Init) -> Result<Self, Error> {
        template::check_name(&init.name)?;
        let this = Self { dir: dir.to_owned() };
        if this.root().exists() {
            return Err(Error::Exists(this.root()));
        }
        let constraints = template::name_constraints(init)?;
        let (crl_url, ocsp_url) = (init.crl_url.clone(), init.ocsp_url.clone());
        let settings = Settings { algorithm: init.algorithm, crl_url, ocsp_url };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(this.issued()).map_err(file_error(&this.issued()))?;
        let root_key = init.algorithm.key()?;
        let root_name = format!("{} root", init.name);
        let root_params = template::authority(&root_name, ROOT_DAYS, BasicConstraints::Unconstrained)?;
        let root = root_params.self_signed(&root_key)?;
        let key = init.algorithm.key()?;
        let intermediate_name = format!("{} intermediate", init.name);
        let mut params = template::authority(&intermediate_name, INTERMEDIATE_DAYS, BasicConstraints::Constrained(0))?;
        params.name_constraints = constraints;
        // A responder answers for one authority; this one is asked about what the intermediate has issued.
        let crl_only = Settings { ocsp_url: None, ..settings.clone() };
        template::status(&mut params, &crl_only, "root.crl");
        let intermediate = params.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;
        write_secret(&this.dir.join("root.key"), &key_pem(&root_key)?)?;
        write_secret(&this.dir.join("intermediate.key"), &key_pem(&key)?)?;
        write_new(&this.dir.join("intermediate.pem"), &intermediate.pem())?;
        let settings = toml::to_string(&settings).map_err(|error| this.broken_settings(&error))?;
        write_new(&this.settings_path(), &settings)?;
        // Last: it is what says that there is an authority.
        write_new(&this.root(), &root.pem())?;
        this.make_crls(CRL_DAYS)?;
        Ok(this)
    }

    /// Opens the authority in a folder.
    ///
    /// # Errors
    /// There is none.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let this = Self { dir: dir.to_owned() };
        if this.root().exists() { Ok(this) } else { Err(Error::NoAuthority(dir.to_owned())) }
    }

    /// The trust anchor's file.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// The file with the CRLs of root and intermediate.
    pub fn crls(&self) -> PathBuf {
        self.dir.join("crl.pem")
    }

    /// Where the certificate of this name is, or would be.
    pub fn chain_of(&self, name: &str) -> PathBuf {
        self.issued().join(format!("{}.pem", file_name(name)))
    }

    /// Where the key of this name is, or would be.
    pub fn key_of(&self, name: &str) -> PathBuf {
        self.issued().join(format!("{}.key", file_name(name)))
    }

    fn issued(&self) -> PathBuf {
        self.dir.join("issued")
    }

    /// Where certificates are that others have taken the place of, under their numbers: a folder of its own, for a
    /// device may have a name that looks like a number.
    fn replaced(&self) -> PathBuf {
        self.dir.join("replaced")
    }

    /// Keeps other processes from changing the folder, until it is dropped: what one revokes, another one that has read
    /// the index before is not to undo.
    fn lock(&self) -> Result<fs::File, Error> {
        let path = self.dir.join(".lock");
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(file_error(&path))?;
        file.lock().map_err(file_error(&path))?;
        Ok(file)
    }

    /// Makes a key, and a certificate for it.
    ///
    /// # Errors
    /// The name cannot be certified or has a certificate already; the folder cannot be read or written.
    pub fn issue(&self, request: &Request) -> Result<Issued, Error> {
        let _lock = self.lock()?;
        let key = self.settings()?.algorithm.key()?;
        let (chain_path, key_path) = (self.chain_of(&request.name), self.key_of(&request.name));
        if chain_path.exists() {
            return Err(Error::Exists(chain_path));
        }
        let chain = self.certify(request, &key)?;
        write_secret(&key_path, &key_pem(&key)?)?;
        if let Err(error) = self.publish(&chain_path, &chain) {
            // A key without a certificate would only be in the way of the next attempt.
            let _ = fs::remove_file(&key_path);
            return Err(error);
        }
        Ok(Issued { chain: chain_path, key: Some(key_path) })
    }

    /// Certifies the key of a PEM certificate signing request, which must be signed by that key. Of what it asks for,
    /// only the subject's common name and organisation count, unless `name` says otherwise: a device does not get to
    /// say that it is an authority, or which host names are its.
    ///
    /// # Errors
    /// As [`Authority::issue`]; the request is broken, or has no common name.
    pub fn sign(
        &self,
        csr: &Path,
        name: Option<&str>,
        purpose: Purpose,
        names: Vec<String>,
        days: u32,
    ) -> Result<Issued, Error> {
        let _lock = self.lock()?;
        let pem = fs::read_to_string(csr).map_err(file_error(csr))?;
        let parsed = CertificateSigningRequestParams::from_pem(&pem)
            .map_err(|error| Error::Content(csr.to_owned(), format!("no certificate signing request: {error}")))?;
        let asked = |kind: DnType| parsed.params.distinguished_name.get(&kind).and_then(text);
        let name = name.map(str::to_owned).or_else(|| asked(DnType::CommonName));
        let name = name.ok_or_else(|| Error::Content(csr.to_owned(), "the subject has no common name".to_owned()))?;
        let request = Request { name, organization: asked(DnType::OrganizationName), purpose, names, days };
        let path = self.chain_of(&request.name);
        if path.exists() {
            return Err(Error::Exists(path));
        }
        // rcgen takes the curve of the signature's usual hash for the key's, so the key is taken as it was written.
        let der = Pem::iter_from_buffer(pem.as_bytes()).next().and_then(Result::ok);
        let der = der.ok_or_else(|| Error::Content(csr.to_owned(), "no PEM".to_owned()))?;
        let (_, request_itself) = X509CertificationRequest::from_der(&der.contents)
            .map_err(|error| Error::Content(csr.to_owned(), format!("no certificate signing request: {error}")))?;
        let key = request_itself.certification_request_info.subject_pki.raw;
        let chain = self.certify(&request, &SubjectPublicKeyInfo::from_der(key)?)?;
        self.publish(&path, &chain)?;
        Ok(Issued { chain: path, key: None })
    }

    /// Certifies again what has a certificate: the same subject, names, purpose and key, unless it is to have a new
    /// one. What was there stays, under its serial number, and stays valid.
    ///
    /// # Errors
    /// There is no certificate of this name, it is revoked and would keep its key, or the folder cannot be written.
    pub fn renew(&self, name: &str, days: u32, with_new_key: bool) -> Result<Issued, Error> {
        let _lock = self.lock()?;
        let path = self.chain_of(name);
        if !path.exists() {
            return Err(Error::Unknown(name.to_owned()));
        }
        let pem = first_pem(&path)?;
        let old = parse(&path, &pem)?;
        let is_revoked = self.list()?.iter().any(|entry| entry.serial == serial_of(&old) && entry.revoked.is_some());
        if is_revoked && !with_new_key {
            return Err(Error::KeyRevoked(name.to_owned()));
        }
        let request = Request {
            name: name.to_owned(),
            organization: old.subject().iter_organization().next().and_then(|o| o.as_str().ok()).map(str::to_owned),
            purpose: purpose(&old),
            names: names(&old),
            days,
        };
        let key_path = self.key_of(name);
        let aside = |path: &Path| self.replaced().join(format!("{}.{}", serial_of(&old), extension(path)));
        let key = if with_new_key { Some(self.settings()?.algorithm.key()?) } else { None };
        let chain = match &key {
            Some(key) => self.certify(&request, key)?,
            None => self.certify(&request, &SubjectPublicKeyInfo::from_der(old.public_key().raw)?)?,
        };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(self.replaced()).map_err(file_error(&path))?;
        fs::rename(&path, aside(&path)).map_err(file_error(&path))?;
        if let Some(key) = &key {
            if key_path.exists() {
                fs::rename(&key_path, aside(&key_path)).map_err(file_error(&key_path))?;
            }
            write_secret(&key_path, &key_pem(key)?)?;
        }
        self.publish(&path, &chain)?;
        Ok(Issued { chain: path, key: key_path.exists().then_some(key_path) })
    }

    /// Everything in the folder: root, intermediate, then what was issued, by name.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let lines = Index::of(&self.dir).lines()?;
        let mut paths = vec![self.root(), self.dir.join("intermediate.pem")];
        for folder in [self.issued(), self.replaced()] {
            if !folder.exists() {
                continue;
            }
            let mut issued = Vec::new();
            for file in fs::read_dir(&folder).map_err(file_error(&folder))? {
                issued.push(file.map_err(file_error(&folder))?.path());
            }
            issued.sort();
            paths.extend(issued.into_iter().filter(|path| extension(path) == "pem"));
        }
        let entry = |path: PathBuf| {
            let pem = first_pem(&path)?;
            let certificate = parse(&path, &pem)?;
            let serial = serial_of(&certificate);
            let line = lines.iter().find(|line| line.serial == serial);
            let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
            Ok(Entry {
                name: name.unwrap_or_default().to_owned(),
                kind: kind(&certificate),
                not_after: certificate.validity().not_after.timestamp(),
                revoked: line.and_then(|line| line.revoked).map(|(_, reason)| reason),
                serial,
                path,
            })
        };
        paths.into_iter().map(entry).collect()
    }

    fn certify(&self, request: &Request, key: &impl PublicKeyData) -> Result<String, Error> {
        template::check_name(&request.name)?;
        let (issuer, pem) = self.issuer("intermediate")?;
        let leaf: Certificate = template::leaf(request, &self.settings()?)?.signed_by(key, &issuer)?;
        Ok(leaf.pem() + &pem)
    }

    /// Enters a new certificate in the index, then writes it: one that is not in the index could not be revoked.
    fn publish(&self, path: &Path, chain: &str) -> Result<(), Error> {
        let pem = Pem::iter_from_buffer(chain.as_bytes()).next().and_then(Result::ok);
        let pem = pem.ok_or_else(|| Error::Content(path.to_owned(), "no PEM".to_owned()))?;
        Index::of(&self.dir).put(&line_of(&parse(path, &pem)?))?;
        write_new(path, chain)
    }

    /// `root` or `intermediate`, ready to sign, and its certificate.
    fn issuer(&self, authority: &str) -> Result<(Issuer<'static, KeyPair>, String), Error> {
        let (certificate, key) = (self.dir.join(format!("{authority}.pem")), self.dir.join(format!("{authority}.key")));
        let pem = fs::read_to_string(&certificate).map_err(file_error(&certificate))?;
        let key = KeyPair::from_pem(&fs::read_to_string(&key).map_err(file_error(&key))?)?;
        Ok((Issuer::from_ca_cert_pem(&pem, key)?, pem))
    }

    fn settings_path(&self) -> PathBuf {
        self.dir.join("authority.toml")
    }

    fn settings(&self) -> Result<Settings, Error> {
        let path = self.settings_path();
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| self.broken_settings(&error)),
            // A folder from before there were settings.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(error) => Err(file_error(&path)(error)),
        }
    }

    fn broken_settings(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Content(self.settings_path(), error.to_string())
    }
}

/// A private key as PKCS#8 without the public key [RFC 5208]: with it [RFC 5958], as keys for Ed25519 are made here,
/// OpenSSL 3.0 does not read it.
fn key_pem(key: &KeyPair) -> Result<Zeroizing<String>, Error> {
    let der = Zeroizing::new(key.serialize_der());
    let broken = || Error::Make(rcgen::Error::CouldNotParseKeyPair);
    let mut info = PrivateKeyInfo::try_from(der.as_slice()).map_err(|_| broken())?;
    info.public_key = None;
    let document = SecretDocument::encode_msg(&info).map_err(|_| broken())?;
    document.to_pem("PRIVATE KEY", LineEnding::LF).map_err(|_| broken())
}

fn text(value: &rcgen::DnValue) -> Option<String> {
    match value {
        rcgen::DnValue::Utf8String(text) => Some(text.clone()),
        rcgen::DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        rcgen::DnValue::Ia5String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn authority(dir: &Path) -> Authority {
        Authority::init(dir, &Init { name: "Test".into(), ..Init::default() }).unwrap()
    }

    fn device(name: &str) -> Request {
        Request { name: name.into(), organization: None, purpose: Purpose::Device, names: Vec::new(), days: 30 }
    }

    #[test]
    fn keys_are_for_their_owner_and_nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let issued = authority.issue(&device("thing001")).unwrap();
        for key in [issued.key.clone().unwrap(), dir.path().join("root.key"), dir.path().join("intermediate.key")] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(matches!(authority.issue(&device("thing001")), Err(Error::Exists(_))));
        assert!(matches!(
            Authority::init(dir.path(), &Init { name: "Test".into(), ..Init::default() }),
            Err(Error::Exists(_))
        ));
        let kinds: Vec<_> = authority.list().unwrap().into_iter().map(|entry| (entry.kind, entry.name)).collect();
        assert_eq!(kinds[2], ("device", "thing001".to_owned()));
        assert_eq!((kinds[0].0, kinds[1].0), ("root", "intermediate"));
    }

    #[test]
    fn what_one_revokes_another_does_not_undo() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        (0..8).for_each(|n| drop(authority.issue(&device(&format!("old{n}"))).unwrap()));
        std::thread::scope(|scope| {
            for n in 0..8 {
                let authority = &authority;
                scope.spawn(move || authority.issue(&device(&format!("new{n}"))).unwrap());
                scope.spawn(move || authority.revoke(&format!("old{n}"), Reason::Unspecified, 1).unwrap());
            }
        });
        let lines = Index::of(dir.path()).lines().unwrap();
        assert_eq!((lines.len(), lines.iter().filter(|line| line.revoked.is_some()).count()), (16, 8));
    }

    #[test]
    fn names_that_would_harm_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        for name in ["", "a#", "+", "a\nb", &"x".repeat(65)] {
            assert!(matches!(authority.issue(&device(name)), Err(Error::Name(..))), "{name:?}");
        }
    }

    #[test]
    fn what_is_revoked_is_found_by_name_and_by_number_and_once() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        authority.issue(&device("a")).unwrap();
        authority.issue(&device("b")).unwrap();
        let serial = authority.list().unwrap().into_iter().find(|entry| entry.name == "b").unwrap().serial;
        let names = |entries: Vec<Entry>| entries.into_iter().map(|entry| entry.name).collect::<Vec<_>>();
        assert_eq!(names(authority.revoke("a", Reason::KeyCompromise, 1).unwrap()), ["a"]);
        assert_eq!(names(authority.revoke(&serial.to_lowercase(), Reason::Superseded, 1).unwrap()), ["b"]);
        assert!(matches!(authority.revoke("a", Reason::Unspecified, 1), Err(Error::Revoked(_))));
        assert!(matches!(authority.revoke("c", Reason::Unspecified, 1), Err(Error::Unknown(_))));
        let revoked: Vec<_> = authority.list().unwrap().into_iter().filter_map(|entry| entry.revoked).collect();
        assert_eq!(revoked, [Reason::KeyCompromise, Reason::Superseded]);
    }

    #[test]
    fn renewing_keeps_the_key_unless_told_otherwise_and_what_was_there() {
        let dir = tempfile::tempdir().unwrap();
        let authority = authority(dir.path());
        let names = vec!["gw.example.com".to_owned(), "192.0.2.7".to_owned()];
        let request = Request { purpose: Purpose::Server, names, ..device("gw") };
        authority.issue(&request).unwrap();
        let key = fs::read(authority.key_of("gw")).unwrap();
        let certificate = |path: &Path| {
            let pem = first_pem(path).unwrap();
            let it = parse(path, &pem).unwrap();
            (serial_of(&it), it.public_key().raw.to_vec(), super::names(&it), kind(&it))
        };
        let before = certificate(&authority.chain_of("gw"));
        authority.renew("gw", 60, false).unwrap();
        let after = certificate(&authority.chain_of("gw"));
        assert_ne!(before.0, after.0);
        assert_eq!((&before.1, &before.2, before.3), (&after.1, &after.2, after.3));
        assert_eq!(fs::read(authority.key_of("gw")).unwrap(), key);
        authority.renew("gw", 60, true).unwrap();
        assert_ne!(certificate(&authority.chain_of("gw")).1, after.1);
        assert_ne!(fs::read(authority.key_of("gw")).unwrap(), key);
        assert_eq!(authority.list().unwrap().iter().filter(|entry| entry.name == "gw").count(), 3);
        assert!(matches!(authority.renew("nobody", 60, false), Err(Error::Unknown(_))));
        // The first two have one key: it is of no use to revoke the last alone.
        assert_eq!(authority.revoke("gw", Reason::KeyCompromise, 1).unwrap().len(), 3);
        assert!(matches!(authority.renew("gw", 60, false), Err(Error::KeyRevoked(_))));
        authority.renew("gw", 60, true).unwrap();
        let intermediate = authority.list().unwrap().remove(1).serial;
        fs::remove_file(dir.path().join("root.key")).unwrap();
        assert!(authority.revoke(&intermediate, Reason::CaCompromise, 1).is_err(), "nobody could publish it");
        assert_eq!(authority.list().unwrap()[1].revoked, None);
    }
}
