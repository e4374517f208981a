//! The commands for the device registry: `portcullis device`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

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
