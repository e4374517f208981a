//! The proxies that are compared. Enters: a directory with a PKI, a broker. Leaves: a running [`Proxy`] that does the same work
//! as the others, and what it cannot do.

pub(crate) mod bare;
mod portcullis;
mod process;
mod third_party;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::ValueEnum;

use crate::load::Load;
pub(crate) use portcullis::{More, further_listener};
pub(crate) use process::{Proxy, errors, free_address};
use third_party::ThirdParty;

/// A proxy that can be measured, in the order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Peer {
    Portcullis,
    /// Another build of Portcullis, of `--baseline`
    #[value(skip)]
    Baseline,
    Envoy,
    /// Debian's, with njs
    Nginx,
    /// Of the next Debian, with OpenSSL 3.5
    NginxNew,
    /// Debian's
    Haproxy,
    /// Of the next Debian, with OpenSSL 3.5
    HaproxyNew,
    /// Of the next Debian; looks at nothing behind TLS
    Hitch,
    /// tokio-rustls and a copy loop: what the libraries alone cost
    Bare,
}

/// Where the programs are.
pub(crate) struct Programs {
    pub(crate) portcullis: PathBuf,
    pub(crate) baseline: Option<PathBuf>,
    /// The directory that `peers/install.sh` has filled, absolute.
    pub(crate) installed: PathBuf,
}

/// What distinguishes a peer.
struct Profile {
    title: &'static str,
    /// Whether goals refer to it: it does work that is comparable to ours, and is not ours.
    is_rival: bool,
    /// Whether it compares the client ID with the certificate.
    checks_client_id: bool,
    /// What is missing in the work that it does.
    lacks: &'static str,
}

impl Peer {
    fn profile(self) -> Profile {
        let ours = |title| Profile { title, is_rival: false, checks_client_id: true, lacks: "" };
        let nginx = |title| Profile {
            title,
            is_rival: true,
            checks_client_id: true,
            lacks: "cannot rewrite CONNECT (its licensed edition can); checks the client ID with njs",
        };
        let haproxy =
            |title| Profile { title, is_rival: true, checks_client_id: true, lacks: "cannot rewrite CONNECT" };
        match self {
            Self::Portcullis => ours("Portcullis"),
            Self::Baseline => ours("baseline"),
            Self::Envoy => Profile {
                title: "Envoy",
                is_rival: true,
                checks_client_id: false,
                lacks: "cannot read MQTT: no check of the client ID, no rewriting; the certificate's subject chooses the broker; \
                        two tickets a handshake",
            },
            Self::Nginx => nginx("nginx + njs"),
            Self::NginxNew => nginx("nginx + njs, OpenSSL 3.5"),
            Self::Haproxy => haproxy("HAProxy"),
            Self::HaproxyNew => haproxy("HAProxy, OpenSSL 3.5"),
            Self::Hitch => Profile {
                title: "hitch",
                is_rival: false,
                checks_client_id: false,
                lacks: "cannot read MQTT, choose a broker or write an access line; goals do not refer to it",
            },
            Self::Bare => Profile {
                title: "bare rustls proxy",
                is_rival: false,
                checks_client_id: false,
                lacks: "checks the certificate only, writes no access line, counts nothing; what the libraries alone cost, so goals \
                        do not refer to it",
            },
        }
    }

    pub(crate) fn title(self) -> &'static str {
        self.profile().title
    }

    /// Whether goals refer to it.
    pub(crate) fn is_rival(self) -> bool {
        self.profile().is_rival
    }

    /// What is missing in the work that it does, for the report.
    pub(crate) fn lacks(self) -> &'static str {
        self.profile().lacks
    }

    /// Starts it, and asserts that it checks the client ID if it can: only such proxies are comparable.
    pub(crate) async fn start(self, programs: &Programs, dir: &Path, load: &Load) -> anyhow::Result<Proxy> {
        let proxy = self.spawn(programs, dir, load.broker.address).await?;
        if self.profile().checks_client_id && load.is_other_admitted(proxy.address).await {
            proxy.stop().await?;
            bail!("{} admits a client ID that does not match the certificate", self.title());
        }
        Ok(proxy)
    }

    async fn spawn(self, programs: &Programs, dir: &Path, broker: SocketAddr) -> anyhow::Result<Proxy> {
        let title = self.title();
        match self.kind(programs)? {
            Kind::ThirdParty(peer) => {
                peer.start(title, &programs.installed, dir, broker).await.with_context(|| self.help(programs))
            }
            Kind::Bare => bare::start(title, dir, broker).await,
            Kind::Ours(binary) => Proxy::portcullis_as(title, binary, dir, broker, &More::default()).await,
        }
    }

    /// The version as the program itself prints it. Fails if the program is missing.
    pub(crate) async fn version(self, programs: &Programs) -> anyhow::Result<String> {
        match self.kind(programs)? {
            Kind::ThirdParty(peer) => peer.version(&programs.installed).await.with_context(|| self.help(programs)),
            Kind::Bare => Ok("rustls and aws-lc of this build".to_owned()),
            Kind::Ours(binary) => process::output_of(binary, &["--version"])
                .await
                .with_context(|| format!("{}: build it first", self.title())),
        }
    }

    fn kind(self, programs: &Programs) -> anyhow::Result<Kind<'_>> {
        Ok(match self {
            Self::Portcullis => Kind::Ours(&programs.portcullis),
            Self::Baseline => Kind::Ours(programs.baseline.as_deref().context("no --baseline")?),
            Self::Bare => Kind::Bare,
            Self::Envoy => Kind::ThirdParty(&third_party::ENVOY),
            Self::Nginx => Kind::ThirdParty(&third_party::NGINX),
            Self::NginxNew => Kind::ThirdParty(&third_party::NGINX_NEW),
            Self::Haproxy => Kind::ThirdParty(&third_party::HAPROXY),
            Self::HaproxyNew => Kind::ThirdParty(&third_party::HAPROXY_NEW),
            Self::Hitch => Kind::ThirdParty(&third_party::HITCH),
        })
    }

    fn help(self, programs: &Programs) -> String {
        format!(
            "{} does not start: `crates/bench/peers/install.sh {}` installs it, and --peers can leave it out",
            self.title(),
            programs.installed.display()
        )
    }
}

/// How a peer is run.
enum Kind<'a> {
    /// A binary of Portcullis.
    Ours(&'a Path),
    /// This program itself.
    Bare,
    ThirdParty(&'static ThirdParty),
}
