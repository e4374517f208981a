//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// The MQTT security gateway
///
/// Stands between devices and any MQTT broker: terminates TLS, checks who a device is, binds that to its MQTT session,
/// and balances sessions over brokers.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 100, after_help = "Try it: portcullis quickstart")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Makes a PKI, a configuration and an embedded broker, and proves that they work
    ///
    /// In DIR: makes a device PKI, writes a commented portcullis.toml, starts an embedded broker and the gateway in
    /// front of it, connects as a device over mutual TLS, publishes and receives, shows that a wrong identity and a
    /// client without a certificate are refused, prints commands to try, and runs until Ctrl-C. A second run reuses DIR.
    #[cfg(feature = "embedded-broker")]
    #[command(after_help = "Examples:\n  portcullis quickstart\n  portcullis quickstart --dir /tmp/pc --check")]
    Quickstart(QuickstartArguments),
    /// Runs the gateway
    ///
    /// SIGHUP reloads the configuration without dropping a session. SIGTERM and SIGINT drain: no more connections are
    /// taken, sessions have `runtime.drain_timeout` to end; a second signal stops at once.
    #[command(after_help = "Examples:\n  portcullis run -c /etc/portcullis/portcullis.toml\n  \
                            kill -HUP $(pidof portcullis)    # reload")]
    Run(ConfigArguments),
    /// Says all that is wrong with a configuration
    ///
    /// Loads it exactly as `run` does, opens every file, compiles every expression, and binds nothing. Exits with 0, or
    /// with 78 if it cannot be used.
    #[command(after_help = "Example:\n  portcullis check -c portcullis.toml && kill -HUP $(pidof portcullis)")]
    Check(ConfigArguments),
    /// A small certificate authority for fleets that have none
    Pki(PkiArguments),
    /// Adds a user to a password file, or changes its password
    ///
    /// The password is asked for, or read from the first line of standard input. Its Argon2id hash is written; a running
    /// gateway reads the file within two seconds.
    #[command(after_help = "Examples:\n  portcullis passwd users.txt alice\n  \
                            pass show alice | portcullis passwd users.txt alice")]
    Passwd {
        /// The file; made if it is not there
        file: PathBuf,
        /// The user's name
        user: String,
    },
    /// The device registry
    Device(DeviceArguments),
    /// Prints a completion script for a shell
    #[command(after_help = "Example:\n  portcullis completions bash > /etc/bash_completion.d/portcullis")]
    Completions {
        /// Which shell
        shell: Shell,
    },
    /// Prints the manual page
    #[command(after_help = "Examples:\n  portcullis man | man -l -\n  portcullis man --dir /usr/local/share/man/man1")]
    Man {
        /// Write a page for each command into this folder instead
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArguments {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    pub(crate) config: PathBuf,
}

#[cfg(feature = "embedded-broker")]
#[derive(Debug, Args)]
pub(crate) struct QuickstartArguments {
    /// Where everything is put
    #[arg(long, value_name = "DIR", default_value = "portcullis-quickstart")]
    pub(crate) dir: PathBuf,
    /// Stop after the proof: exit with 0 if it holds, else with 1
    #[arg(long)]
    pub(crate) check: bool,
    /// Where a new configuration listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8883")]
    pub(crate) bind: std::net::SocketAddr,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    portcullis pki init --dir pki --name \"Example Fleet\"\n  \
    portcullis pki issue server gateway --san gw.example.com --san 192.0.2.7 --dir pki\n  \
    portcullis pki issue device thing001 --dir pki\n  \
    portcullis pki sign thing002.csr --dir pki    # the key stays on the device\n  \
    portcullis pki renew thing001 --dir pki\n  \
    portcullis pki revoke thing001 --reason key-compromise --dir pki\n  \
    portcullis pki crl --crl-days 7 --dir pki    # from cron: CRLs expire\n  \
    portcullis pki list --dir pki")]
pub(crate) struct PkiArguments {
    #[command(subcommand)]
    pub(crate) command: PkiCommand,
}

#[derive(Debug, Args)]
pub(crate) struct PkiDir {
    /// The folder of the certificate authority
    #[arg(long, value_name = "DIR", default_value = "pki")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum PkiCommand {
    /// Makes a root and an intermediate that signs, and their CRLs
    #[command(after_help = "Examples:\n  portcullis pki init --name \"Example Fleet\"\n  \
                            portcullis pki init --algorithm ed25519 --permit-dns example.com\n  \
                            portcullis pki init --crl-url http://crl.example.com/fleet --ocsp-url http://ocsp.example.com/")]
    Init {
        #[command(flatten)]
        dir: PkiDir,
        /// The authority's name, in its certificates
        #[arg(long, default_value = "Portcullis")]
        name: String,
        /// Of its keys, and of those it makes
        #[arg(long, value_enum, default_value_t = Algorithm::EcP256)]
        algorithm: Algorithm,
        /// A host name it may certify, with those below it; may be given more than once [default: all]
        #[arg(long, value_name = "NAME")]
        permit_dns: Vec<String>,
        /// A network whose addresses it may certify; may be given more than once [default: all]
        #[arg(long, value_name = "NETWORK")]
        permit_ip: Vec<String>,
        /// Where root.crl and intermediate.crl will be published; stands in certificates and CRLs
        #[arg(long, value_name = "URL")]
        crl_url: Option<String>,
        /// Where an OCSP responder will answer; stands in certificates
        #[arg(long, value_name = "URL")]
        ocsp_url: Option<String>,
    },
    /// Makes a key and a certificate for it
    Issue {
        #[command(subcommand)]
        what: Issue,
    },
    /// Certifies the key of a certificate signing request
    #[command(after_help = "Example:\n  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes \\\n    \
                            -keyout thing002.key -subj /CN=thing002 -out thing002.csr\n  portcullis pki sign thing002.csr")]
    Sign {
        /// The request, PEM
        csr: PathBuf,
        #[command(flatten)]
        dir: PkiDir,
        /// The name to certify, in place of the request's common name
        #[arg(long)]
        name: Option<String>,
        /// For a server, not for a device
        #[arg(long)]
        server: bool,
        /// An alternative name: host name, address, URI or mail address; may be given more than once
        #[arg(long = "san", value_name = "NAME")]
        san: Vec<String>,
        /// How many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
    },
    /// Certifies again what has a certificate: same subject, names, purpose and key
    ///
    /// The certificate that was there is kept under its serial number, and stays valid.
    Renew {
        /// Its common name
        name: String,
        #[command(flatten)]
        dir: PkiDir,
        /// How many days it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
        days: u32,
        /// Make a new key, too
        #[arg(long)]
        new_key: bool,
    },
    /// Revokes certificates, and makes the CRLs anew
    ///
    /// By a common name all that were issued under it, for a renewed certificate has the key of the one before; by a
    /// serial number that one.
    Revoke {
        /// Its common name, or its serial number
        name: String,
        #[command(flatten)]
        dir: PkiDir,
        /// Why
        #[arg(long, value_enum, default_value_t = Reason::Unspecified)]
        reason: Reason,
        #[command(flatten)]
        crl: CrlArguments,
    },
    /// Makes the CRLs anew: crl.pem for the gateway, root.crl and intermediate.crl to publish
    ///
    /// A CRL is good for a limited time: run this more often than that, for instance daily. The root's is made only
    /// where root.key is, and is good for a year.
    Crl {
        #[command(flatten)]
        dir: PkiDir,
        #[command(flatten)]
        crl: CrlArguments,
    },
    /// Lists what is there, when it expires, and what is revoked
    List {
        #[command(flatten)]
        dir: PkiDir,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Issue {
    /// For a server
    Server {
        /// Its common name
        name: String,
        /// A host name or address it is reached under; may be given more than once [default: the name]
        #[arg(long = "san", value_name = "NAME")]
        san: Vec<String>,
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// For a device
    Device {
        /// Its common name: the client ID it will use
        name: String,
        /// An alternative name: host name, address, URI or mail address; may be given more than once
        #[arg(long = "san", value_name = "NAME")]
        san: Vec<String>,
        #[command(flatten)]
        issue: IssueArguments,
    },
    /// For an OCSP responder that answers for the intermediate
    Ocsp {
        /// Its common name
        name: String,
        #[command(flatten)]
        issue: IssueArguments,
    },
}

/// Of a key.
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
    /// How many days the intermediate's CRL is good for
    #[arg(long = "crl-days", default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
pub(crate) struct IssueArguments {
    #[command(flatten)]
    pub(crate) dir: PkiDir,
    /// An organisation for the subject
    #[arg(long)]
    pub(crate) organization: Option<String>,
    /// How many days it is valid
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    pub(crate) days: u32,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    export PORTCULLIS_DATABASE=sqlite:devices.db    # or -c portcullis.toml, or --database\n  \
    portcullis device add thing001 --group pumps --attribute site=lyon\n  \
    portcullis device psk thing001    # prints the new key\n  \
    portcullis device pin thing001 --certificate thing001.pem\n  \
    portcullis device disable thing001    # its session ends within seconds\n  \
    portcullis device ban thing001 --for 2h\n  \
    portcullis device import devices.csv\n  \
    portcullis device list --group pumps")]
pub(crate) struct DeviceArguments {
    #[command(flatten)]
    pub(crate) database: DatabaseArguments,
    #[command(subcommand)]
    pub(crate) command: DeviceCommand,
}

#[derive(Debug, Args)]
pub(crate) struct DatabaseArguments {
    /// sqlite:PATH, or postgres://USER:PASSWORD@HOST/DATABASE; a file is made if it is not there
    #[arg(long, value_name = "URL", env = "PORTCULLIS_DATABASE", hide_env_values = true, global = true)]
    pub(crate) database: Option<String>,
    /// The gateway's configuration, whose registry is taken; counts more than the variable
    #[arg(short, long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Adds a device, enabled
    #[command(
        after_help = "Example:\n  portcullis device add thing001 --group pumps --attribute site=lyon --attribute floor=3"
    )]
    Add {
        /// Its ID
        id: String,
        #[command(flatten)]
        properties: DeviceProperties,
    },
    /// Changes groups and attributes of a device
    Set {
        /// Its ID
        id: String,
        #[command(flatten)]
        properties: DeviceProperties,
        /// A group to leave; may be given more than once
        #[arg(long, value_name = "GROUP")]
        remove_group: Vec<String>,
        /// An attribute to remove; may be given more than once
        #[arg(long, value_name = "NAME")]
        remove_attribute: Vec<String>,
    },
    /// Lists devices
    List {
        /// Only those of this group
        #[arg(long)]
        group: Option<String>,
        /// Only those in this state
        #[arg(long, value_enum)]
        state: Option<DeviceState>,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Shows a device; never its keys
    Show {
        /// Its ID
        id: String,
        /// As a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Lets a device in again
    Enable {
        /// Its ID
        id: String,
    },
    /// Keeps a device out until it is enabled; its sessions end
    Disable {
        /// Its ID
        id: String,
    },
    /// Keeps a device out for a time; its sessions end
    Ban {
        /// Its ID
        id: String,
        /// How long, as 30m, 2h, 7d
        #[arg(long = "for", value_name = "PERIOD", value_parser = humantime::parse_duration)]
        period: std::time::Duration,
    },
    /// Removes a device; its sessions end
    Remove {
        /// Its ID
        id: String,
    },
    /// Gives a device a pre-shared key, and prints it; or takes it away
    #[command(after_help = "Examples:\n  portcullis device psk thing001\n  \
                            echo 6f1d...e2 | portcullis device psk thing001 --stdin --identity pump-1")]
    Psk {
        /// Its ID
        id: String,
        /// The key's identity [default: the ID]
        #[arg(long)]
        identity: Option<String>,
        /// Read the key, in hexadecimal, from standard input instead of making one
        #[arg(long)]
        stdin: bool,
        /// Take the key away
        #[arg(long, conflicts_with_all = ["identity", "stdin"])]
        remove: bool,
    },
    /// Gives a device a password, asked for or read from standard input; or takes it away
    Password {
        /// Its ID
        id: String,
        /// Take the password away
        #[arg(long)]
        remove: bool,
    },
    /// Pins a device to certificates or public keys
    #[command(after_help = "Examples:\n  portcullis device pin thing001 --certificate thing001.pem\n  \
                            portcullis device pin thing001 --fingerprint 9f86d0...0a08\n  \
                            portcullis device pin thing001 --remove 9f86d0...0a08")]
    Pin {
        /// Its ID
        id: String,
        /// PEM file of the certificate; its public key is pinned, so that it may be renewed
        #[arg(long, value_name = "FILE")]
        certificate: Vec<PathBuf>,
        /// SHA-256 of a certificate or of a public key (SubjectPublicKeyInfo), in hexadecimal
        #[arg(long, value_name = "HEX")]
        fingerprint: Vec<String>,
        /// A fingerprint to remove
        #[arg(long, value_name = "HEX")]
        remove: Vec<String>,
    },
    /// Adds devices from a CSV file
    ///
    /// The first line names the columns: `id`; `state` (enabled or disabled), `groups` and `pins` (separated by `;`),
    /// `psk_identity`, `psk` (hexadecimal), `password` or `password_hash`; each other column is an attribute, as text.
    /// All devices are added, or none.
    #[command(after_help = "Example:\n  printf 'id,groups,site\\nthing001,pumps;north,lyon\\n' > devices.csv\n  \
                            portcullis device import devices.csv")]
    Import {
        /// The file; `-` is standard input
        file: PathBuf,
        /// What becomes of devices that are there already
        #[arg(long, value_enum, default_value_t = Existing::Refuse)]
        existing: Existing,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeviceProperties {
    /// A group it belongs to; may be given more than once
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Vec<String>,
    /// Something else to know of it: NAME=VALUE, in which a VALUE that is JSON counts as that; may be given more than once
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) attribute: Vec<String>,
}

/// Whether a device is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceState {
    Enabled,
    Disabled,
    Banned,
}

/// What becomes of a device that is there already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Existing {
    /// Nothing is changed at all
    Refuse,
    /// It stays as it is
    Skip,
    /// It becomes the new one
    Replace,
}
