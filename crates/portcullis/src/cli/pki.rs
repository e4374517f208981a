//! The commands for the small certificate authority: `portcullis pki`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    portcullis pki init --dir pki --name \"Example Fleet\"\n  \
    portcullis pki issue server gateway --san gw.example.com --san 192.0.2.7 --dir pki\n  \
    portcullis pki issue device thing001 --dir pki\n  \
    portcullis pki sign thing002.csr --dir pki    # the private key stays on the device\n  \
    portcullis pki renew thing001 --dir pki\n  \
    portcullis pki revoke thing001 --reason key-compromise --dir pki\n  \
    portcullis pki crl --crl-days 7 --dir pki    # run daily from cron: CRLs expire\n  \
    portcullis pki list --dir pki")]
pub(crate) struct PkiArguments {
    #[command(subcommand)]
    pub(crate) command: PkiCommand,
}

#[derive(Debug, Args)]
pub(crate) struct PkiDir {
    /// The directory of the certificate authority
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Create a root CA, an intermediate CA that issues certificates, and their CRLs
    #[command(after_help = "Examples:\n  portcullis pki init --name \"Example Fleet\"\n  \
                            portcullis pki init --algorithm ed25519 --permit-dns example.com\n  \
                            portcullis pki init --crl-url http://crl.example.com/fleet --ocsp-url http://ocsp.example.com/")]
    Init {
        #[command(flatten)]
        dir: PkiDir,
        /// The name of the authority, as its certificates show it
        #[arg(long, default_value = "Portcullis")]
        name: String,
        /// The algorithm of the CA keys and of the keys it generates
        #[arg(long, value_enum, default_value_t = Algorithm::EcP256)]
        algorithm: Algorithm,
        /// A DNS domain the CA may issue for, subdomains included; repeatable [default: any]
        #[arg(long, value_name = "NAME")]
        permit_dns: Vec<String>,
        /// A network the CA may issue IP addresses of; repeatable [default: any]
        #[arg(long, value_name = "NETWORK")]
        permit_ip: Vec<String>,
        /// The URL under which you publish root.crl and intermediate.crl; written into certificates and CRLs
        #[arg(long, value_name = "URL")]
        crl_url: Option<String>,
        /// The URL of your OCSP responder; written into certificates
        #[arg(long, value_name = "URL")]
        ocsp_url: Option<String>,
    },
    /// Generate a key and issue a certificate for it
    #[command(after_help = "Examples:\n  portcullis pki issue server gateway --san gw.example.com --san 192.0.2.7\n  \
                            portcullis pki issue device thing001\n  portcullis pki issue ocsp responder")]
    Issue {
        #[command(subcommand)]
        what: Issue,
    },
    /// Issue a certificate for a certificate signing request (CSR)
    ///
    /// Takes the common name and the organization from the CSR, and ignores what else it asks for: alternative names and
    /// the purpose come from the options below.
    #[command(after_help = "Example:\n  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\\n    \
                            -keyout thing002.key -subj /CN=thing002 -out thing002.csr\n  portcullis pki sign thing002.csr")]
    Sign {
        /// The CSR file, PEM
        csr: PathBuf,
        #[command(flatten)]
        dir: PkiDir,
        /// The common name, instead of the one in the CSR
        #[arg(long)]
        name: Option<String>,
        /// Issue a server certificate instead of a device certificate
        #[arg(long)]
        server: bool,
        /// A subject alternative name: host name, IP address, URI or email address; repeatable
        #[arg(long = "san", value_name = "NAME")]
        san: Vec<String>,
        /// How many days the certificate is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Issue a certificate again, with the same subject, names, purpose and key
    ///
    /// The previous certificate moves to DIR/replaced, under its serial number. It stays valid until it expires or you
    /// revoke it.
    #[command(after_help = "Examples:\n  portcullis pki renew thing001\n  \
                            portcullis pki renew gateway --days 90 --new-key")]
    Renew {
        /// The common name of the certificate
        name: String,
        #[command(flatten)]
        dir: PkiDir,
        /// How many days the certificate is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Generate a new key as well
        #[arg(long)]
        new_key: bool,
    },
    /// Revoke certificates and regenerate the CRLs
    ///
    /// A common name revokes every certificate that was issued under it, because a renewed certificate shares the key of
    /// the previous one. A serial number revokes that certificate alone.
    #[command(after_help = "Examples:\n  portcullis pki revoke thing001 --reason key-compromise\n  \
                            portcullis pki revoke 4F9C...A2    # one certificate, by its serial number")]
    Revoke {
        /// A common name, or a serial number
        name: String,
        #[command(flatten)]
        dir: PkiDir,
        /// The reason, as the CRL states it
        #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
        reason: Reason,
        #[command(flatten)]
        crl: CrlArguments,
    },
    /// Regenerate the CRLs: crl.pem for the gateway, root.crl and intermediate.crl to publish
    ///
    /// CRLs expire: run this more often than every `--crl-days`, for instance daily. The CRL of the root is valid for a
    /// year and is regenerated only if root.key is present.
    #[command(after_help = "Example:\n  portcullis pki crl --crl-days 7 --dir /etc/portcullis/pki")]
    Crl {
        #[command(flatten)]
        dir: PkiDir,
        #[command(flatten)]
        crl: CrlArguments,
    },
    /// List certificates with their expiry and revocation status
    #[command(after_help = "Example:\n  portcullis pki list --dir /etc/portcullis/pki")]
    List {
        #[command(flatten)]
        dir: PkiDir,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Issue {
    /// Issue a server certificate
    #[command(after_help = "Example:\n  portcullis pki issue server gateway --san gw.example.com --san 192.0.2.7")]
    Server {
        /// The common name
        name: String,
        /// A host name or IP address that clients connect to; repeatable [default: NAME]
        #[arg(long = "san", value_name = "NAME")]
        san: Vec<String>,
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// Issue a device certificate
    #[command(after_help = "Examples:\n  portcullis pki issue device thing001\n  \
                            portcullis pki issue device thing001 --organization \"Example Ltd\" --days 90")]
    Device {
        /// The common name: the client ID that the device uses
        name: String,
        /// A subject alternative name: host name, IP address, URI or email address; repeatable
        #[arg(long = "san", value_name = "NAME")]
        san: Vec<String>,
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// Issue a certificate for the OCSP responder of the intermediate CA
    #[command(after_help = "Example:\n  portcullis pki issue ocsp responder")]
    Ocsp {
        /// The common name
        name: String,
        #[command(flatten)]
        issue: IssueArguments,
    },
}

/// The algorithm of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Algorithm {
    #[value(name = "ec-p256")]
    EcP256,
    #[value(name = "ec-p384")]
    EcP384,
    Ed25519,
}

/// Why a certificate is revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Reason {
    Unspecified,
    KeyCompromise,
    CaCompromise,
    AffiliationChanged,
    Superseded,
    CessationOfOperation,
    PrivilegeWithdrawn,
}

#[derive(Debug, Args)]
pub(crate) struct CrlArguments {
    /// How many days the CRL of the intermediate is valid
    #[arg(long = "crl-days", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct IssueArguments {
    #[command(flatten)]
    pub(crate) dir: PkiDir,
    /// The organization in the subject
    #[arg(long)]
    pub(crate) organization: Option<String>,
    /// How many days the certificate is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,
}
