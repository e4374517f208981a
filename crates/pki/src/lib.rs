//! A small certificate authority in a folder: a root, an intermediate that signs, and what it has issued.
//!
//! ```text
//! DIR/root.pem          the trust anchor: `client_ca` of a listener, `--cafile` of a client
//! DIR/root.key          to be kept elsewhere once the intermediate is there
//! DIR/intermediate.pem, intermediate.key
//! DIR/issued/NAME.pem   chain, leaf first
//! DIR/issued/NAME.key   unless the key never left its device
//! ```
//!
//! The folder is all the state there is. Private keys are written readable by their owner alone, and nothing is ever
//! written over.

use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use aws_lc_rs::rand;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::Pem;

/// What can go wrong.
#[derive(Debug)]
pub enum Error {
    /// A file cannot be read or written.
    File(PathBuf, io::Error),
    /// A file is there already; nothing is written over.
    Exists(PathBuf),
    /// There is no authority in this folder.
    NoAuthority(PathBuf),
    /// A name that cannot be certified.
    Name(String, &'static str),
    /// What a file contains is not what it should be.
    Content(PathBuf, String),
    /// A key or certificate cannot be made.
    Make(rcgen::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::File(path, _) => write!(f, "cannot read or write {}", path.display()),
            Error::Exists(path) => write!(f, "{} is there already", path.display()),
            Error::NoAuthority(path) => write!(f, "there is no certificate authority in {}", path.display()),
            Error::Name(name, why) => write!(f, "`{}` cannot be certified: {why}", name.escape_debug()),
            Error::Content(path, why) => write!(f, "{}: {why}", path.display()),
            Error::Make(_) => f.write_str("cannot make a key or certificate"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::File(_, error) => Some(error),
            Error::Make(error) => Some(error),
            _ => None,
        }
    }
}

impl From<rcgen::Error> for Error {
    fn from(error: rcgen::Error) -> Self {
        Error::Make(error)
    }
}

impl Error {
    /// What to do about it.
    pub const fn hint(&self) -> Option<&'static str> {
        match self {
            Error::NoAuthority(_) => Some("make one with `portcullis pki init`"),
            Error::Exists(_) => Some("nothing is ever written over: choose another name, or move the file away"),
            _ => None,
        }
    }
}

/// What a certificate is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A server, under these host names and addresses.
    Server(Vec<String>),
    /// A device that connects.
    Device,
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
    /// How long.
    pub days: u32,
}

/// Files of an issued certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Issued {
    /// The chain, leaf first.
    pub chain: PathBuf,
    /// The private key, if it was made here.
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
    /// `root`, `intermediate`, `server` or `device`.
    pub kind: &'static str,
    /// Seconds since 1970.
    pub not_after: i64,
}

const ROOT_DAYS: i64 = 20 * 365;
const INTERMEDIATE_DAYS: i64 = 10 * 365;
/// A clock that is a little behind is no reason to refuse a new certificate.
const BACKDATED: Duration = Duration::hours(1);
/// Upper bound of a common name [RFC 5280, appendix A.1].
const MAX_NAME_LEN: usize = 64;

/// A certificate authority in a folder.
#[derive(Debug)]
pub struct Authority {
    dir: PathBuf,
}

impl Authority {
    /// Makes an authority: root and intermediate, EC P-256.
    ///
    /// # Errors
    /// There is one already, or the folder cannot be written.
    pub fn init(dir: &Path, name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let this = Self { dir: dir.to_owned() };
        if this.root().exists() {
            return Err(Error::Exists(this.root()));
        }
        fs::DirBuilder::new().recursive(true).mode(0o700).create(this.issued()).map_err(file_error(&this.issued()))?;
        let root_key = KeyPair::generate()?;
        let root_params = authority_params(&format!("{name} root"), ROOT_DAYS, BasicConstraints::Unconstrained)?;
        let root = root_params.self_signed(&root_key)?;
        let key = KeyPair::generate()?;
        let params =
            authority_params(&format!("{name} intermediate"), INTERMEDIATE_DAYS, BasicConstraints::Constrained(0))?;
        let intermediate = params.signed_by(&key, &Issuer::from_params(&root_params, &root_key))?;
        write_secret(&this.dir.join("root.key"), &root_key.serialize_pem())?;
        write_secret(&this.dir.join("intermediate.key"), &key.serialize_pem())?;
        write_new(&this.dir.join("intermediate.pem"), &intermediate.pem())?;
        // Last: it is what says that there is an authority.
        write_new(&this.root(), &root.pem())?;
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

    /// Makes a key, and a certificate for it.
    ///
    /// # Errors
    /// The name cannot be certified or has a certificate already; the folder cannot be read or written.
    pub fn issue(&self, request: &Request) -> Result<Issued, Error> {
        let key = KeyPair::generate()?;
        let chain = self.certify(request, &key)?;
        let (chain_path, key_path) = (self.chain_of(&request.name), self.key_of(&request.name));
        if chain_path.exists() {
            return Err(Error::Exists(chain_path));
        }
        write_secret(&key_path, &key.serialize_pem())?;
        if let Err(error) = write_new(&chain_path, &chain) {
            // A key without a certificate would only be in the way of the next attempt.
            let _ = fs::remove_file(&key_path);
            return Err(error);
        }
        Ok(Issued { chain: chain_path, key: Some(key_path) })
    }

    /// Certifies the key of a PEM certificate signing request, which must be signed by that key. Of what it asks for,
    /// only the subject's common name and organisation count, unless `name` says otherwise: a device does not get to
    /// say that it is an authority.
    ///
    /// # Errors
    /// As [`Authority::issue`]; the request is broken, or has no common name.
    pub fn sign(&self, csr: &Path, name: Option<&str>, purpose: Purpose, days: u32) -> Result<Issued, Error> {
        let pem = fs::read_to_string(csr).map_err(file_error(csr))?;
        let parsed = CertificateSigningRequestParams::from_pem(&pem)
            .map_err(|error| Error::Content(csr.to_owned(), format!("no certificate signing request: {error}")))?;
        let asked = |kind: DnType| parsed.params.distinguished_name.get(&kind).and_then(text);
        let name = name.map(str::to_owned).or_else(|| asked(DnType::CommonName));
        let name = name.ok_or_else(|| Error::Content(csr.to_owned(), "the subject has no common name".to_owned()))?;
        let organization = asked(DnType::OrganizationName);
        let request = Request { name, organization, purpose, days };
        let chain = self.certify(&request, &parsed.public_key)?;
        let path = self.chain_of(&request.name);
        write_new(&path, &chain)?;
        Ok(Issued { chain: path, key: None })
    }

    /// Everything in the folder: root, intermediate, then what was issued, by name.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn list(&self) -> Result<Vec<Entry>, Error> {
        let mut entries = vec![entry(&self.root())?, entry(&self.dir.join("intermediate.pem"))?];
        let issued = fs::read_dir(self.issued()).map_err(file_error(&self.issued()))?;
        let mut paths = Vec::new();
        for file in issued {
            paths.push(file.map_err(file_error(&self.issued()))?.path());
        }
        paths.sort();
        for path in paths.iter().filter(|path| path.extension().is_some_and(|extension| extension == "pem")) {
            entries.push(entry(path)?);
        }
        Ok(entries)
    }

    fn certify(&self, request: &Request, key: &impl PublicKeyData) -> Result<String, Error> {
        check_name(&request.name)?;
        let (certificate, signer) = (self.dir.join("intermediate.pem"), self.dir.join("intermediate.key"));
        let pem = fs::read_to_string(&certificate).map_err(file_error(&certificate))?;
        let signer = KeyPair::from_pem(&fs::read_to_string(&signer).map_err(file_error(&signer))?)?;
        let issuer = Issuer::from_ca_cert_pem(&pem, signer)?;
        let params = leaf_params(request)?;
        let leaf: Certificate = params.signed_by(key, &issuer)?;
        Ok(leaf.pem() + &pem)
    }
}

fn authority_params(name: &str, days: i64, constraints: BasicConstraints) -> Result<CertificateParams, Error> {
    let mut params = params(name, None, days)?;
    params.is_ca = IsCa::Ca(constraints);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(request: &Request) -> Result<CertificateParams, Error> {
    let mut params = params(&request.name, request.organization.as_deref(), i64::from(request.days))?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = match &request.purpose {
        Purpose::Server(names) => {
            for name in names {
                params.subject_alt_names.push(match name.parse::<IpAddr>() {
                    Ok(address) => SanType::IpAddress(address),
                    Err(_) => SanType::DnsName(
                        name.as_str().try_into().map_err(|_| Error::Name(name.clone(), "a host name is ASCII"))?,
                    ),
                });
            }
            vec![ExtendedKeyUsagePurpose::ServerAuth]
        }
        Purpose::Device => vec![ExtendedKeyUsagePurpose::ClientAuth],
    };
    Ok(params)
}

fn params(name: &str, organization: Option<&str>, days: i64) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    if let Some(organization) = organization {
        params.distinguished_name.push(DnType::OrganizationName, organization);
    }
    params.distinguished_name.push(DnType::CommonName, name);
    // Unpredictable [CA/B baseline requirements, 7.1], positive, and never shorter than it looks.
    let mut serial = [0; 16];
    rand::fill(&mut serial).map_err(|_| Error::Make(rcgen::Error::RingUnspecified))?;
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn check_name(name: &str) -> Result<(), Error> {
    let refuse = |why| Err(Error::Name(name.to_owned(), why));
    match name {
        "" => refuse("it is empty"),
        _ if name.chars().count() > MAX_NAME_LEN => refuse("a common name has at most 64 characters"),
        _ if name.chars().any(char::is_control) => refuse("it has control characters"),
        // In topic rules that a client ID is put into, they would match other devices' topics.
        _ if name.contains(['+', '#']) => refuse("`+` and `#` are wildcards in MQTT topics"),
        _ => Ok(()),
    }
}

/// A name as a file name: what is not a letter, a digit, `-`, `_` or an inner dot is written `%HH`.
fn file_name(name: &str) -> String {
    let mut out = String::new();
    for (position, byte) in name.bytes().enumerate() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => out.push(char::from(byte)),
            b'.' if position > 0 => out.push('.'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn entry(path: &Path) -> Result<Entry, Error> {
    let broken = |why: &str| Error::Content(path.to_owned(), why.to_owned());
    let bytes = fs::read(path).map_err(file_error(path))?;
    let pem = Pem::iter_from_buffer(&bytes).next().ok_or_else(|| broken("no PEM"))?.map_err(|_| broken("no PEM"))?;
    let certificate = pem.parse_x509().map_err(|_| broken("no certificate"))?;
    let is_server = certificate.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.server_auth);
    let kind = match (certificate.is_ca(), certificate.issuer() == certificate.subject(), is_server) {
        (true, true, _) => "root",
        (true, false, _) => "intermediate",
        (false, _, true) => "server",
        (false, _, false) => "device",
    };
    let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    Ok(Entry {
        path: path.to_owned(),
        name: name.unwrap_or_default().to_owned(),
        serial: certificate.raw_serial_as_string().replace(':', "").to_uppercase(),
        kind,
        not_after: certificate.validity().not_after.timestamp(),
    })
}

fn text(value: &rcgen::DnValue) -> Option<String> {
    match value {
        rcgen::DnValue::Utf8String(text) => Some(text.clone()),
        rcgen::DnValue::PrintableString(text) => Some(text.as_str().to_owned()),
        rcgen::DnValue::Ia5String(text) => Some(text.as_str().to_owned()),
        _ => None,
    }
}

fn write_secret(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text, 0o600)
}

fn write_new(path: &Path, text: &str) -> Result<(), Error> {
    write(path, text, 0o644)
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), Error> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(|error| {
        if error.kind() == io::ErrorKind::AlreadyExists {
            Error::Exists(path.to_owned())
        } else {
            Error::File(path.to_owned(), error)
        }
    })?;
    file.write_all(text.as_bytes()).map_err(file_error(path))
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> Error {
    let path = path.to_owned();
    move |error| Error::File(path, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn keys_are_for_their_owner_and_nothing_is_written_over() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), "Test").unwrap();
        let request = Request { name: "thing001".into(), organization: None, purpose: Purpose::Device, days: 30 };
        let issued = authority.issue(&request).unwrap();
        for key in [issued.key.clone().unwrap(), dir.path().join("root.key"), dir.path().join("intermediate.key")] {
            assert_eq!(fs::metadata(key).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert!(matches!(authority.issue(&request), Err(Error::Exists(_))));
        assert!(matches!(Authority::init(dir.path(), "Test"), Err(Error::Exists(_))));
        let kinds: Vec<_> = authority.list().unwrap().into_iter().map(|entry| (entry.kind, entry.name)).collect();
        assert_eq!(kinds[2], ("device", "thing001".to_owned()));
        assert_eq!((kinds[0].0, kinds[1].0), ("root", "intermediate"));
    }

    #[test]
    fn names_that_would_harm_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::init(dir.path(), "Test").unwrap();
        for name in ["", "a#", "+", "a\nb", &"x".repeat(65)] {
            let request = Request { name: name.into(), organization: None, purpose: Purpose::Device, days: 1 };
            assert!(matches!(authority.issue(&request), Err(Error::Name(..))), "{name:?}");
        }
        assert_eq!(file_name("../../etc/passwd"), "%2E.%2F..%2Fetc%2Fpasswd");
    }
}
