//! The command line: what `clap` parses, and the help texts it prints. Nothing runs here.

mod device;
mod pki;

pub(crate) use device::{DatabaseArguments, DeviceArguments, DeviceCommand, DeviceProperties, DeviceState, Existing};
pub(crate) use pki::{Algorithm, Issue, IssueArguments, PkiArguments, PkiCommand, Reason};

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
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
    /// SIGTERM and SIGINT drain: the gateway accepts no more connections, and ends the sessions one after another within
    /// `runtime.drain_timeout`. A second signal stops it at once.
    ///
    /// SIGUSR2 replaces the program: a new process gets the listening sockets, and this one drains once the new one serves.
    #[command(after_help = "Examples:\n  portcullis run -c /etc/portcullis/portcullis.toml\n  \
                            kill -HUP $(pidof portcullis)    # reload the configuration\n  \
                            kill -USR2 PID                   # replace the program")]
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
