//! `portcullis pki`.

use portcullis_pki::{Authority, Error, Issued, Purpose, Request};

use crate::cli::{Issue, IssueArguments, PkiArguments, PkiCommand};
use crate::report::Failure;

pub(crate) fn pki(arguments: PkiArguments) -> Result<(), Failure> {
    run(arguments.command).map_err(|error| match error.hint() {
        Some(hint) => Failure::hint(error, hint),
        None => error.into(),
    })
}

fn run(command: PkiCommand) -> Result<(), Error> {
    match command {
        PkiCommand::Init { dir, name } => {
            let authority = Authority::init(&dir.dir, &name)?;
            println!("made a certificate authority; devices are vouched for by {}", authority.root().display());
            println!("keep {} somewhere else: issuing does not need it", dir.dir.join("root.key").display());
        }
        PkiCommand::Issue { what } => {
            let (name, purpose, IssueArguments { dir, organization, days }) = match what {
                Issue::Server { name, san, issue } => {
                    let names = if san.is_empty() { vec![name.clone()] } else { san };
                    (name, Purpose::Server(names), issue)
                }
                Issue::Device { name, issue } => (name, Purpose::Device, issue),
            };
            let authority = Authority::open(&dir.dir)?;
            print(&authority.issue(&Request { name, organization, purpose, days })?);
        }
        PkiCommand::Sign { csr, dir, name, days } => {
            print(&Authority::open(&dir.dir)?.sign(&csr, name.as_deref(), Purpose::Device, days)?);
        }
        PkiCommand::List { dir } => {
            println!("{:<12} {:<32} {:<25} SERIAL", "KIND", "NAME", "EXPIRES");
            for entry in Authority::open(&dir.dir)?.list()? {
                let expires = chrono::DateTime::from_timestamp(entry.not_after, 0).map(|time| time.to_rfc3339());
                let expires = expires.unwrap_or_default();
                println!("{:<12} {:<32} {:<25} {}", entry.kind, entry.name.escape_debug(), expires, entry.serial);
            }
        }
    }
    Ok(())
}

fn print(issued: &Issued) {
    println!("certificate: {}", issued.chain.display());
    if let Some(key) = &issued.key {
        println!("private key: {}", key.display());
    }
}
