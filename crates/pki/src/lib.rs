//! A small certificate authority in a directory: a root, an intermediate that issues, the certificates that it has
//! issued, and their revocation.
//!
//! ```text
//! DIR/root.pem           the trust anchor: `client_ca` of a listener, `--cafile` of a client
//! DIR/root.key           move it to offline storage: issuing needs only the intermediate
//! DIR/intermediate.pem, intermediate.key
//! DIR/issued/NAME.pem    chain, leaf first
//! DIR/issued/NAME.key    private key, unless it was generated on the device
//! DIR/replaced/          certificates that were renewed, and keys that were replaced
//! DIR/index.txt          every certificate issued, in OpenSSL's format
//! DIR/crl.pem            the CRLs of root and intermediate: `crl` of a listener
//! DIR/root.crl, intermediate.crl    the same in DER, for publishing
//! DIR/authority.toml     settings that all certificates share
//! ```
//!
//! The directory holds all state. Private keys are written with mode 0600. Certificates and keys are never overwritten.

mod crl;
mod error;
mod folder;
mod index;
mod reading;
mod template;
mod types;
mod verify;

pub use error::Error;
pub use index::Reason;
pub use types::{Algorithm, Entry, Init, Issued, Purpose, Request};

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pkcs8::der::SecretDocument;
use pkcs8::{LineEnding, PrivateKeyInfo};
use rcgen::{
    BasicConstraints, Certificate, CertificateSigningRequestParams, DnType, Issuer, KeyPair, PublicKeyData,
    SubjectPublicKeyInfo,
};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::pem::Pem;
use x509_parser::prelude::FromDer;
use zeroize::Zeroizing;

use error::file_error;
use folder::{file_name, write_new, write_secret};
use index::Index;
use reading::{extension, first_pem, kind, line_of, names, parse, purpose, serial_of};
use types::Settings;

const ROOT_DAYS: i64 = 20 * 365;
const INTERMEDIATE_DAYS: i64 = 10 * 365;
/// How many days the first CRL of the intermediate is valid.
pub const CRL_DAYS: u32 = 30;

/// A certificate authority in a directory.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Creates an authority: a root, an intermediate, and a CRL of each.
    ///
    /// # Errors
    /// The directory already has an authority, a name cannot be certified, or a file cannot be written.
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
        // The responder answers for certificates of the intermediate, not for the intermediate itself.
        let crl_only = Settings { ocsp_url: None, ..settings.clone() };
        template::status(&mut params, &crl_only, "root.crl");
        let intermediate = params.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;
        write_secret(&this.dir.join("root.key"), &key_pem(&root_key)?)?;
        write_secret(&this.dir.join("intermediate.key"), &key_pem(&key)?)?;
        write_new(&this.dir.join("intermediate.pem"), &intermediate.pem())?;
        let settings = toml::to_string(&settings).map_err(|error| this.broken_settings(&error))?;
        write_new(&this.settings_path(), &settings)?;
        // Last: the authority exists once root.pem does.
        write_new(&this.root(), &root.pem())?;
        this.make_crls(CRL_DAYS)?;
        Ok(this)
    }

    /// Opens the authority in a directory.
    ///
    /// # Errors
    /// The directory has none.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let this = Self { dir: dir.to_owned() };
        if this.root().exists() { Ok(this) } else { Err(Error::NoAuthority(dir.to_owned())) }
    }

    /// The file of the trust anchor.
    pub fn root(&self) -> PathBuf {
        self.dir.join("root.pem")
    }

    /// The file with the CRLs of root and intermediate.
    pub fn crls(&self) -> PathBuf {
        self.dir.join("crl.pem")
    }

    /// The file of the certificate with this common name, whether or not it exists.
    pub fn chain_of(&self, name: &str) -> PathBuf {
        self.issued().join(format!("{}.pem", file_name(name)))
    }

    /// The file of the private key for this common name, whether or not it exists.
    pub fn key_of(&self, name: &str) -> PathBuf {
        self.issued().join(format!("{}.key", file_name(name)))
    }

    fn issued(&self) -> PathBuf {
        self.dir.join("issued")
    }

    /// The directory of replaced certificates, named by their serial numbers. It is separate from `issued` because a
    /// device may have a name that looks like a serial number.
    fn replaced(&self) -> PathBuf {
        self.dir.join("replaced")
    }

    /// Locks the directory against other processes until the returned file is dropped. Without it, a process that has read
    /// the index earlier would undo a revocation when it writes the index back.
    fn lock(&self) -> Result<fs::File, Error> {
        let path = self.dir.join(".lock");
        let file = fs::OpenOptions::new().create(true).append(true).open(&path).map_err(file_error(&path))?;
        file.lock().map_err(file_error(&path))?;
        Ok(file)
    }

    /// Generates a key and issues a certificate for it.
    ///
    /// # Errors
    /// The name cannot be certified or already has a certificate, or a file cannot be read or written.
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
            // A key without a certificate would block the next attempt.
            let _ = fs::remove_file(&key_path);
            return Err(error);
        }
        Ok(Issued { chain: chain_path, key: Some(key_path) })
    }

    /// Issues a certificate for a PEM certificate signing request, whose signature proves that the requester has the key.
    /// Takes only the common name (unless `name` replaces it) and the organization from the request, and ignores all else:
    /// a device must not make itself a CA or choose its host names.
    ///
    /// # Errors
    /// As [`Authority::issue`]; or the request is malformed or has no common name.
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
            .map_err(|error| Error::Content(csr.to_owned(), format!("not a certificate signing request: {error}")))?;
        let asked = |kind: DnType| parsed.params.distinguished_name.get(&kind).and_then(text);
        let name = name.map(str::to_owned).or_else(|| asked(DnType::CommonName));
        let name = name.ok_or_else(|| Error::Content(csr.to_owned(), "the subject has no common name".to_owned()))?;
        let request = Request { name, organization: asked(DnType::OrganizationName), purpose, names, days };
        let path = self.chain_of(&request.name);
        if path.exists() {
            return Err(Error::Exists(path));
        }
        // rcgen derives the curve from the signature's hash, which may be wrong, so the key is copied as encoded.
        let der = Pem::iter_from_buffer(pem.as_bytes()).next().and_then(Result::ok);
        let der = der.ok_or_else(|| Error::Content(csr.to_owned(), "not PEM".to_owned()))?;
        let (_, request_itself) = X509CertificationRequest::from_der(&der.contents)
            .map_err(|error| Error::Content(csr.to_owned(), format!("not a certificate signing request: {error}")))?;
        let key = request_itself.certification_request_info.subject_pki.raw;
        let chain = self.certify(&request, &SubjectPublicKeyInfo::from_der(key)?)?;
        self.publish(&path, &chain)?;
        Ok(Issued { chain: path, key: None })
    }

    /// Issues a certificate again: with the same subject, names and purpose, and with the same key unless `with_new_key`.
    /// The previous certificate moves to `replaced/`, under its serial number, and stays valid.
    ///
    /// # Errors
    /// No certificate has this name, it is revoked and would keep its key, or a file cannot be read or written.
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

    /// All certificates of the directory: root, intermediate, then those issued, by file name, then those replaced.
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
        verify::verify(&leaf, &first_pem(&self.dir.join("intermediate.pem"))?, &first_pem(&self.root())?, request)?;
        Ok(leaf.pem() + &pem)
    }

    /// Adds a new certificate to the index, then writes its file. In the other order, a crash in between would leave a
    /// certificate that cannot be revoked.
    fn publish(&self, path: &Path, chain: &str) -> Result<(), Error> {
        let pem = Pem::iter_from_buffer(chain.as_bytes()).next().and_then(Result::ok);
        let pem = pem.ok_or_else(|| Error::Content(path.to_owned(), "not PEM".to_owned()))?;
        Index::of(&self.dir).put(&line_of(&parse(path, &pem)?))?;
        write_new(path, chain)
    }

    /// The issuer `root` or `intermediate`, ready to sign, and its certificate in PEM.
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
            // The directory is older than the settings file.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Settings::default()),
            Err(error) => Err(file_error(&path)(error)),
        }
    }

    fn broken_settings(&self, error: &dyn std::fmt::Display) -> Error {
        Error::Content(self.settings_path(), error.to_string())
    }
}

/// A private key as PKCS#8 version 1 [RFC 5208], without the public key. Ed25519 keys are generated as version 2 [RFC 5958],
/// which OpenSSL 3.0 does not read.
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
    fn a_certificate_that_no_verifier_accepts_is_not_issued() {
        let dir = tempfile::tempdir().unwrap();
        let permit_dns = vec!["example.com".to_owned()];
        let init = Init { name: "Test".to_owned(), permit_dns, ..Init::default() };
        let authority = Authority::init(dir.path(), &init).unwrap();
        let server = |name: &str, san: &str| {
            let names = vec![san.to_owned()];
            authority.issue(&Request { names, purpose: Purpose::Server, ..device(name) })
        };
        assert!(server("good", "gw.example.com").is_ok());
        let error = server("bad", "gw.example.org").unwrap_err().to_string();
        assert!(error.contains("name constraints"), "{error}");
        assert!(!authority.chain_of("bad").exists() && !authority.key_of("bad").exists(), "nothing is left behind");
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
        // The first two share a key: revoking the last alone would leave that key valid.
        assert_eq!(authority.revoke("gw", Reason::KeyCompromise, 1).unwrap().len(), 3);
        assert!(matches!(authority.renew("gw", 60, false), Err(Error::KeyRevoked(_))));
        authority.renew("gw", 60, true).unwrap();
        let intermediate = authority.list().unwrap().remove(1).serial;
        fs::remove_file(dir.path().join("root.key")).unwrap();
        assert!(
            authority.revoke(&intermediate, Reason::CaCompromise, 1).is_err(),
            "without the root's key its CRL cannot be signed"
        );
        assert_eq!(authority.list().unwrap()[1].revoked, None);
    }
}
