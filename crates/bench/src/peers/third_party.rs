//! The peers of others. Enters: the directory of `peers/install.sh`, the templates in `peers/`. Leaves: a running process, its
//! version. All are configured for the same work: two workers, TLS 1.2 and 1.3, mutual TLS, tickets, one access line.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tokio::process::Command;

use super::process::{Proxy, free_address, output_of};

/// How to run a peer. In all texts, `{installed}` is the directory of the installation, `{dir}` that of this run.
pub(super) struct ThirdParty {
    program: &'static str,
    arguments: &'static [&'static str],
    /// Names and templates of its files.
    files: &'static [(&'static str, &'static str)],
    /// Where its modules are.
    modules: &'static str,
    /// Prints the version, and that of the TLS library.
    version: &'static [&'static str],
    /// How lines of that output begin, without what is to be reported.
    version_lines: &'static [&'static str],
}

pub(super) const ENVOY: ThirdParty = ThirdParty {
    program: "{installed}/bin/envoy",
    // The access log is written once a second instead of every ten: a line must not be lost long after its connection.
    arguments: &[
        "-c",
        "{dir}/envoy.yaml",
        "--concurrency",
        "2",
        "--disable-hot-restart",
        "--log-level",
        "error",
        "--file-flush-interval-msec",
        "1000",
    ],
    files: &[("envoy.yaml", include_str!("../../peers/envoy.yaml"))],
    modules: "",
    version: &["--version"],
    version_lines: &["{installed}/bin/envoy  version: "],
};

pub(super) const NGINX: ThirdParty = ThirdParty {
    program: "/usr/sbin/nginx",
    arguments: &["-e", "{dir}/nginx.error.log", "-c", "{dir}/nginx.conf"],
    files: &[
        ("nginx.conf", include_str!("../../peers/nginx.conf")),
        ("check.js", include_str!("../../peers/check.js")),
    ],
    modules: "/usr/lib/nginx/modules",
    version: &["-V"],
    version_lines: &["nginx version: nginx/", "built with "],
};

pub(super) const NGINX_NEW: ThirdParty = ThirdParty {
    program: "{installed}/bin/trixie-nginx",
    modules: "{installed}/trixie/usr/lib/nginx/modules",
    ..NGINX
};

pub(super) const HAPROXY: ThirdParty = ThirdParty {
    program: "/usr/sbin/haproxy",
    arguments: &["-db", "-f", "{dir}/haproxy.cfg"],
    files: &[("haproxy.cfg", include_str!("../../peers/haproxy.cfg"))],
    modules: "",
    version: &["-vv"],
    version_lines: &["HAProxy version ", "Running on OpenSSL version : "],
};

pub(super) const HAPROXY_NEW: ThirdParty = ThirdParty { program: "{installed}/bin/trixie-haproxy", ..HAPROXY };

pub(super) const HITCH: ThirdParty = ThirdParty {
    program: "{installed}/bin/trixie-hitch",
    arguments: &["--config={dir}/hitch.conf"],
    files: &[("hitch.conf", include_str!("../../peers/hitch.conf"))],
    modules: "",
    version: &["--version"],
    version_lines: &["hitch "],
};

/// One TLS 1.3 ticket a handshake for those that have no setting for it.
const OPENSSL_CONF: (&str, &str) = ("openssl.cnf", include_str!("../../peers/openssl.cnf"));

impl ThirdParty {
    pub(super) async fn start(
        &self,
        title: &'static str,
        installed: &Path,
        dir: &Path,
        broker: SocketAddr,
    ) -> anyhow::Result<Proxy> {
        let address = free_address()?;
        let values = [
            // May contain another placeholder, so it is first.
            ("{modules}", self.modules.to_owned()),
            ("{installed}", installed.display().to_string()),
            ("{dir}", dir.display().to_string()),
            ("{address}", address.to_string()),
            ("{address_ip}", address.ip().to_string()),
            ("{address_port}", address.port().to_string()),
            ("{broker}", broker.to_string()),
            ("{broker_ip}", broker.ip().to_string()),
            ("{broker_port}", broker.port().to_string()),
        ];
        for (name, template) in self.files.iter().chain([&OPENSSL_CONF]) {
            fs::write(dir.join(name), filled(template, &values))?;
        }
        // HAProxy wants certificate and key in one file.
        let issued = |name| fs::read_to_string(dir.join("pki/issued").join(name));
        fs::write(dir.join("haproxy.pem"), issued("localhost.pem")? + &issued("localhost.key")?)?;
        let mut command = Command::new(filled(self.program, &values));
        command.args(self.arguments.iter().map(|it| filled(it, &values))).env("OPENSSL_CONF", dir.join(OPENSSL_CONF.0));
        Proxy::spawn(title, address, dir, command).await
    }

    pub(super) async fn version(&self, installed: &Path) -> anyhow::Result<String> {
        let values = [("{installed}", installed.display().to_string())];
        let output = output_of(Path::new(&filled(self.program, &values)), self.version).await?;
        let find = |start: &&str| {
            let found = output.lines().find_map(|line| line.strip_prefix(&filled(start, &values)))?;
            // HAProxy adds its home page.
            found.split(" - ").next().map(str::to_owned)
        };
        Ok(self.version_lines.iter().filter_map(find).collect::<Vec<_>>().join(", "))
    }
}

fn filled(template: &str, values: &[(&str, String)]) -> String {
    values.iter().fold(template.to_owned(), |text, (placeholder, value)| text.replace(placeholder, value))
}
