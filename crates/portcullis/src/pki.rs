//! `portcullis pki`: runs the certificate authority, and prints the files and certificates that a command made.

use portcullis_pki::{Authority, Entry, Error, Init, Issued, Purpose, Request};

use crate::cli::{self, Issue, IssueArguments, PkiArguments, PkiCommand};
use crate::output::say;
use crate::report::Failure;

pub(crate) fn pki(arguments: PkiArguments) -> Result<(), Failure> {
    run(arguments.command).map_err(|error| match error.hint() {
        Some(hint) => Failure::hint(error, hint),
        None => error.into(),
    })
}

fn run(command: PkiCommand) -> Result<(), Error> {
    match command {
        PkiCommand::Init { dir, name, algorithm, permit_dns, permit_ip, crl_url, ocsp_url } => {
            let algorithm = algorithm.into();
            let init = Init { name, algorithm, permit_dns, permit_ip, crl_url, ocsp_url };
            let authority = Authority::init(&dir.dir, &init)?;
            say!("created certificate authority; trust anchor: {}", authority.root().display());
            say!("move {} to offline storage: issuing does not need it", dir.dir.join("root.key").display());
        }
        PkiCommand::Issue { what } => {
            let (name, purpose, names, IssueArguments { dir, organization, days }) = match what {
                Issue::Server { name, san, issue } => {
                    let names = if san.is_empty() { vec![name.clone()] } else { san };
                    (name, Purpose::Server, names, issue)
                }
                Issue::Device { name, san, issue } => (name, Purpose::Device, san, issue),
                Issue::Ocsp { name, issue } => (name, Purpose::Ocsp, Vec::new(), issue),
            };
            let authority = Authority::open(&dir.dir)?;
            print(&authority.issue(&Request { name, organization, purpose, names, days })?);
        }
        PkiCommand::Sign { csr, dir, name, server, san, days } => {
            let purpose = if server { Purpose::Server } else { Purpose::Device };
            print(&Authority::open(&dir.dir)?.sign(&csr, name.as_deref(), purpose, san, days)?);
        }
        PkiCommand::Renew { name, dir, days, new_key } => {
            print(&Authority::open(&dir.dir)?.renew(&name, days, new_key)?);
        }
        PkiCommand::Revoke { name, dir, reason, crl } => {
            let authority = Authority::open(&dir.dir)?;
            for Entry { name, serial, .. } in authority.revoke(&name, reason.into(), crl.days)? {
                say!("revoked: {} ({serial})", name.escape_debug());
            }
            say!("CRLs: {}", authority.crls().display());
        }
        PkiCommand::Crl { dir, crl } => {
            for path in Authority::open(&dir.dir)?.crl(crl.days)? {
                say!("CRL: {}", path.display());
            }
        }
        PkiCommand::List { dir } => {
            say!("{:<12} {:<32} {:<25} {:<32} STATUS", "KIND", "NAME", "EXPIRES", "SERIAL");
            let now = chrono::Utc::now();
            for entry in Authority::open(&dir.dir)?.list()? {
                let time = chrono::DateTime::from_timestamp(entry.not_after, 0).unwrap_or_default();
                let status = match entry.revoked {
                    Some(reason) => format!("revoked: {}", reason.label()),
                    None if time < now => "expired".to_owned(),
                    None => format!("{} days left", (time - now).num_days()),
                };
                let (name, expires) = (entry.name.escape_debug().to_string(), time.to_rfc3339());
                say!("{:<12} {name:<32} {expires:<25} {:<32} {status}", entry.kind, entry.serial);
            }
        }
    }
    Ok(())
}

impl From<cli::Algorithm> for portcullis_pki::Algorithm {
    fn from(algorithm: cli::Algorithm) -> Self {
        match algorithm {
            cli::Algorithm::EcP256 => Self::EcP256,
            cli::Algorithm::EcP384 => Self::EcP384,
            cli::Algorithm::Ed25519 => Self::Ed25519,
        }
    }
}

impl From<cli::Reason> for portcullis_pki::Reason {
    fn from(reason: cli::Reason) -> Self {
        match reason {
            cli::Reason::Unspecified => Self::Unspecified,
            cli::Reason::KeyCompromise => Self::KeyCompromise,
            cli::Reason::CaCompromise => Self::CaCompromise,
            cli::Reason::AffiliationChanged => Self::AffiliationChanged,
            cli::Reason::Superseded => Self::Superseded,
            cli::Reason::CessationOfOperation => Self::CessationOfOperation,
            cli::Reason::PrivilegeWithdrawn => Self::PrivilegeWithdrawn,
        }
    }
}

fn print(issued: &Issued) {
    say!("certificate: {}", issued.chain.display());
    if let Some(key) = &issued.key {
        say!("private key: {}", key.display());
    }
}
