//! Portcullis. Enters: a binary, keys in addition. Leaves: the gateway with identity check, rewriting, hash balancing, access log
//! and metrics.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;

use super::process::{Proxy, free_address};

/// What is added to the configuration of Portcullis.
#[derive(Default)]
pub(crate) struct More {
    /// Keys of `[[listener]]`.
    pub(crate) listener: String,
    /// Keys of `[listener.tls]`.
    pub(crate) tls: String,
    /// Keys of `[[upstream]]`.
    pub(crate) upstream: String,
    /// Further tables.
    pub(crate) tables: String,
    /// Whether the gateway logs what it does, too: `info` in place of `warn`.
    pub(crate) is_informing: bool,
    /// Where its admin interface listens, if this has to be known.
    pub(crate) admin: Option<SocketAddr>,
    /// Whether it has one worker in place of two.
    pub(crate) is_single: bool,
}

/// A further `[[listener]]` that does the same for its clients as the one of all measurements, but for rewriting, with these keys.
pub(crate) fn further_listener(name: &str, address: SocketAddr, upstream: &str, keys: &str) -> String {
    format!(
        "[[listener]]
name = \"{name}\"
bind = \"{address}\"
upstream = \"{upstream}\"
{keys}
[listener.tls]
certificate = \"pki/issued/localhost.pem\"
private_key = \"pki/issued/localhost.key\"
client_ca = \"pki/root.pem\"
[listener.admit]
require = ['mqtt.client_id == cert.subject.cn']
"
    )
}

impl Proxy {
    /// Starts Portcullis with more keys.
    pub(crate) async fn portcullis_with(
        binary: &Path,
        dir: &Path,
        broker: SocketAddr,
        more: &More,
    ) -> anyhow::Result<Self> {
        Self::portcullis_as("Portcullis", binary, dir, broker, more).await
    }

    /// As [`Proxy::portcullis_with`], as the last argument of another command, which ends with it.
    pub(crate) async fn portcullis_under(
        mut tracer: Command,
        binary: &Path,
        dir: &Path,
        broker: SocketAddr,
        more: &More,
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let command = more.write(binary, dir, address, broker)?;
        tracer.arg(command.get_program()).args(command.get_args());
        Self::spawn("Portcullis", address, dir, tracer.into()).await
    }

    /// As [`Proxy::portcullis_with`], under another name.
    pub(super) async fn portcullis_as(
        name: &'static str,
        binary: &Path,
        dir: &Path,
        broker: SocketAddr,
        more: &More,
    ) -> anyhow::Result<Self> {
        let address = free_address()?;
        let command = more.write(binary, dir, address, broker)?;
        Self::spawn(name, address, dir, command.into()).await
    }
}

impl More {
    /// Writes the configuration into `dir`. Returns the command that starts the gateway with it.
    pub(crate) fn write(
        &self,
        binary: &Path,
        dir: &Path,
        address: SocketAddr,
        broker: SocketAddr,
    ) -> anyhow::Result<Command> {
        let configuration = include_str!("../../peers/portcullis.toml")
            .replace("{address}", &address.to_string())
            .replace("{broker}", &broker.to_string())
            .replace("{admin}", &self.admin.unwrap_or((Ipv4Addr::LOCALHOST, 0).into()).to_string())
            .replace("{workers}", if self.is_single { "1" } else { "2" })
            .replace("{log}", if self.is_informing { "info" } else { "warn" })
            .replace("{listener}", &self.listener)
            .replace("{tls}", &self.tls)
            .replace("{upstream}", &self.upstream)
            .replace("{tables}", &self.tables);
        let file = dir.join("portcullis.toml");
        fs::write(&file, configuration)?;
        let mut command = Command::new(binary);
        command.arg("run").arg("-c").arg(file);
        Ok(command)
    }
}
