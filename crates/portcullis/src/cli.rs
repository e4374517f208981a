//! The command line: what `clap` parses, and the help texts it prints. Nothing runs here.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

/// The MQTT security gateway
///
/// Portcullis runs in front of any MQTT broker. It terminates TLS, authenticates each device, binds the device's identity
/// to its MQTT session, and balances sessions over brokers.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version, max_term_width = 100, after_help = "To try it: portcullis quickstart")]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Set up a PKI, a gateway and an embedded broker, and prove that they work
    ///
    /// Creates a device PKI and a commented portcullis.toml in DIR, and starts the gateway in front of an embedded broker.
    /// Connects as a device over mutual TLS, publishes a message and receives it back. Proves that the gateway rejects a
    /// client ID that does not match the certificate, and a client without a certificate. Then prints commands to try and
    /// runs until Ctrl-C. A second run reuses DIR.
    #[cfg(feature = "embedded-broker")]
    #[command(after_help = "Examples:\n  portcullis quickstart\n  portcullis quickstart --dir /tmp/pc --check")]
    Quickstart(QuickstartArguments),
    /// Run the gateway
    ///
    /// SIGHUP reloads the configuration. Sessions that the new configuration allows stay connected. If the configuration
    /// has errors, the gateway keeps the current one. SIGUSR1 opens the access log again, for logrotate.
    ///
    /// SIGTERM and SIGINT drain: the gateway accepts no more connections and gives sessions `runtime.drain_timeout` to
    /// end. A second signal stops it at once.
    #[command(after_help = "Examples:\n  portcullis run -c /etc/portcullis/portcullis.toml\n  \
                            kill -HUP $(pidof portcullis)    # reload the configuration")]
    Run(ConfigArguments),
    /// Check a configuration and print every problem
    ///
    /// Loads the configuration exactly as `run` does: opens every file and compiles every expression, but binds no
    /// address. Prints each error and each warning with its line and a hint. Exits with 0 if the configuration is valid,
    /// and with 78 if it has errors.
    #[command(after_help = "Example:\n  portcullis check -c portcullis.toml && kill -HUP $(pidof portcullis)")]
    Check(ConfigArguments),
    /// Run a small certificate authority, for fleets that have none
    Pki(PkiArguments),
    /// Add a user to a password file, or change a user's password
    ///
    /// Prompts for the password on a terminal; otherwise reads it from the first line of standard input. The file stores
    /// an Argon2id hash. A running gateway picks up the change within two seconds.
    #[command(after_help = "Examples:\n  portcullis passwd users.txt alice\n  \
                            pass show alice | portcullis passwd users.txt alice")]
    Passwd {
        /// The password file; created if it does not exist
        file: PathBuf,
        /// The user name
        user: String,
    },
    /// Manage the device registry
    Device(DeviceArguments),
    /// Print a shell completion script
    #[command(after_help = "Example:\n  portcullis completions bash > /etc/bash_completion.d/portcullis")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page
    #[command(after_help = "Examples:\n  portcullis man | man -l -\n  portcullis man --dir /usr/local/share/man/man1")]
    Man {
        /// Write one page per command into this directory instead
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
    /// The directory for the PKI, the configuration and the access log
    #[arg(long, value_name = "DIR", default_value = "portcullis-quickstart")]
    pub(crate) dir: PathBuf,
    /// Stop after the proof: exit with 0 if every step passed, otherwise with 1
    #[arg(long)]
    pub(crate) check: bool,
    /// The address on which a new configuration listens
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8883")]
    pub(crate) bind: std::net::SocketAddr,
}

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

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    export PORTCULLIS_DATABASE=sqlite:devices.db    # or -c portcullis.toml, or --database\n  \
    portcullis device add thing001 --group pumps --attribute site=lyon\n  \
    portcullis device psk thing001    # prints the new key, once\n  \
    portcullis device pin thing001 --certificate thing001.pem\n  \
    portcullis device disable thing001    # the gateway ends its sessions within seconds\n  \
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
    /// The registry: sqlite:PATH, or postgres://USER:PASSWORD@HOST/DATABASE
    #[arg(long, value_name = "URL", env = "PORTCULLIS_DATABASE", hide_env_values = true, global = true)]
    pub(crate) database: Option<String>,
    /// Use the registry of this gateway configuration; overrides --database and PORTCULLIS_DATABASE
    #[arg(short, long, value_name = "FILE", global = true)]
    pub(crate) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// Add a device; it is enabled at once
    ///
    /// Creates the SQLite file if it does not exist.
    #[command(
        after_help = "Example:\n  portcullis device add thing001 --group pumps --attribute site=lyon --attribute floor=3"
    )]
    Add {
        /// The device ID
        id: String,
        #[command(flatten)]
        properties: DeviceProperties,
    },
    /// Change the groups and attributes of a device
    #[command(
        after_help = "Example:\n  portcullis device set thing001 --group north --remove-group south --attribute floor=4"
    )]
    Set {
        /// The device ID
        id: String,
        #[command(flatten)]
        properties: DeviceProperties,
        /// A group to remove the device from; repeatable
        #[arg(long, value_name = "GROUP")]
        remove_group: Vec<String>,
        /// An attribute to remove; repeatable
        #[arg(long, value_name = "NAME")]
        remove_attribute: Vec<String>,
    },
    /// List devices: ID, state, credentials and groups, separated by tabs
    #[command(after_help = "Examples:\n  portcullis device list --group pumps --state disabled\n  \
                            portcullis device list --json | jq -r .id")]
    List {
        /// List only devices in this group
        #[arg(long)]
        group: Option<String>,
        /// List only devices in this state
        #[arg(long, value_enum)]
        state: Option<DeviceState>,
        /// Print one JSON object per line
        #[arg(long)]
        json: bool,
    },
    /// Show a device, without its secrets
    #[command(after_help = "Example:\n  portcullis device show thing001 --json")]
    Show {
        /// The device ID
        id: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Allow a disabled or banned device to connect again
    #[command(after_help = "Example:\n  portcullis device enable thing001")]
    Enable {
        /// The device ID
        id: String,
    },
    /// Disable a device until you enable it again; its sessions end
    #[command(after_help = "Example:\n  portcullis device disable thing001")]
    Disable {
        /// The device ID
        id: String,
    },
    /// Ban a device for a period; its sessions end
    #[command(after_help = "Example:\n  portcullis device ban thing001 --for 2h")]
    Ban {
        /// The device ID
        id: String,
        /// How long: 30m, 2h, 7d
        #[arg(long = "for", value_name = "PERIOD", value_parser = humantime::parse_duration)]
        period: std::time::Duration,
    },
    /// Remove a device; its sessions end
    #[command(after_help = "Example:\n  portcullis device remove thing001")]
    Remove {
        /// The device ID
        id: String,
    },
    /// Set or remove the pre-shared key of a device
    ///
    /// Generates a random key and prints it, once. With `--stdin`, stores the key that you provide.
    #[command(after_help = "Examples:\n  portcullis device psk thing001\n  \
                            echo 6f1d...e2 | portcullis device psk thing001 --stdin --identity pump-1")]
    Psk {
        /// The device ID
        id: String,
        /// The PSK identity [default: the device ID]
        #[arg(long)]
        identity: Option<String>,
        /// Read the key from standard input, in hexadecimal, instead of generating one
        #[arg(long)]
        stdin: bool,
        /// Remove the key
        #[arg(long, conflicts_with_all = ["identity", "stdin"])]
        remove: bool,
    },
    /// Set or remove the password of a device
    ///
    /// Prompts for the password on a terminal; otherwise reads it from the first line of standard input.
    #[command(after_help = "Examples:\n  portcullis device password thing001\n  \
                            pass show thing001 | portcullis device password thing001")]
    Password {
        /// The device ID
        id: String,
        /// Remove the password
        #[arg(long)]
        remove: bool,
    },
    /// Pin a device to certificates or public keys
    #[command(after_help = "Examples:\n  portcullis device pin thing001 --certificate thing001.pem\n  \
                            portcullis device pin thing001 --fingerprint 9f86d0...0a08\n  \
                            portcullis device pin thing001 --remove 9f86d0...0a08")]
    Pin {
        /// The device ID
        id: String,
        /// Pin the public key of the certificate in this PEM file; a certificate renewed with the same key still matches;
        /// repeatable
        #[arg(long, value_name = "FILE")]
        certificate: Vec<PathBuf>,
        /// Pin the SHA-256 of a certificate or of a public key (SubjectPublicKeyInfo), in hexadecimal; repeatable
        #[arg(long, value_name = "HEX")]
        fingerprint: Vec<String>,
        /// A fingerprint to remove; repeatable
        #[arg(long, value_name = "HEX")]
        remove: Vec<String>,
    },
    /// Add devices from a CSV file; either all of them or none
    ///
    /// The first line names the columns. `id` is required. Optional columns are `state` (enabled or disabled), `groups` and
    /// `pins` (separated by `;`), `psk_identity`, `psk` (hexadecimal), and `password` or `password_hash`. Any other column
    /// becomes an attribute, as text.
    #[command(after_help = "Example:\n  printf 'id,groups,site\\nthing001,pumps;north,lyon\\n' > devices.csv\n  \
                            portcullis device import devices.csv")]
    Import {
        /// The CSV file; `-` reads standard input
        file: PathBuf,
        /// What to do with devices that already exist
        #[arg(long, value_enum, default_value_t = Existing::Refuse)]
        existing: Existing,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DeviceProperties {
    /// A group the device belongs to; repeatable
    #[arg(long, value_name = "GROUP")]
    pub(crate) group: Vec<String>,
    /// An attribute; a VALUE that is valid JSON is stored as JSON, anything else as text; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub(crate) attribute: Vec<String>,
}

/// Whether a device may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceState {
    Enabled,
    Disabled,
    Banned,
}

/// What an import does with a device that already exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Existing {
    /// Fail, and change nothing
    Refuse,
    /// Keep the existing device
    Skip,
    /// Replace the existing device
    Replace,
}
