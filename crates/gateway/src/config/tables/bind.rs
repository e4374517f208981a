//! Addresses to listen on: `address:port`, or `unix:/path?mode=0660&owner=...&group=...`.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use nix::unistd::{Group, User};

use super::super::diagnostics::Complaint;
use super::super::document::Document;
use crate::util::suggest::suggest;

/// The longest path of a Unix socket in bytes: `sun_path` without its NUL byte [unix(7)].
pub(super) const MAX_UNIX_PATH: usize = 107;
const DEFAULT_MODE: u32 = 0o660;
const HINT: &str =
    "for example \"0.0.0.0:8883\", \"[::]:8883\" or \"unix:/run/portcullis/mqtt.sock\"; a listener takes no host names";

/// An address to listen on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Bind {
    /// An IP address and port; port 0 picks a free one.
    Ip(SocketAddr),
    /// A Unix socket.
    Unix(UnixBind),
}

/// A Unix socket to listen on. Two are equal if they have the same path.
#[derive(Clone, Debug)]
pub struct UnixBind {
    /// The path of its file.
    pub path: Arc<Path>,
    /// Who may connect.
    pub access: SocketAccess,
}

/// Who may connect to a Unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// The mode of the file. Connecting requires the permission to write.
    pub mode: u32,
    /// Its user; `None`: the gateway's.
    pub owner: Option<u32>,
    /// Its group; `None`: the gateway's.
    pub group: Option<u32>,
}

impl PartialEq for UnixBind {
    fn eq(&self, other: &Self) -> bool {
        self.path == other.path
    }
}

impl Eq for UnixBind {}

impl Hash for UnixBind {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.path.hash(state);
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(f),
            Self::Unix(bind) => write!(f, "unix:{}", bind.path.display()),
        }
    }
}

impl Bind {
    /// The IP address and port; `None` for a Unix socket.
    pub const fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }

    /// Whether both cannot be bound at the same time. `[::]` has no IPv4 addresses.
    pub(super) fn overlaps(&self, other: &Self) -> bool {
        match (self.ip(), other.ip()) {
            (Some(one), Some(other)) => {
                let is_same_ip = one.ip() == other.ip() || one.ip().is_unspecified() || other.ip().is_unspecified();
                one.port() == other.port() && one.port() != 0 && one.is_ipv4() == other.is_ipv4() && is_same_ip
            }
            _ => self == other,
        }
    }

    /// Parses an address; paths are relative to the configuration file.
    pub(super) fn parse(text: &str, document: &Document) -> Result<Self, Complaint> {
        if let Some(rest) = text.strip_prefix("unix:") {
            return parse_unix(rest, document).map(Self::Unix);
        }
        if text.starts_with('/') {
            let hint = format!("write \"unix:{text}\"");
            return Err(Complaint::new(format!("`{text}` is not an address with a port")).hint(hint));
        }
        text.parse()
            .map(Self::Ip)
            .map_err(|_| Complaint::new(format!("`{text}` is not an address with a port")).hint(HINT))
    }
}

fn parse_unix(text: &str, document: &Document) -> Result<UnixBind, Complaint> {
    let (path, options) = text.split_once('?').map_or((text, None), |(path, options)| (path, Some(options)));
    let path = parse_unix_path(path, document)?;
    let mut access = SocketAccess { mode: DEFAULT_MODE, owner: None, group: None };
    for option in options.into_iter().flat_map(|options| options.split('&')) {
        let (key, value) = option.split_once('=').unwrap_or((option, ""));
        match key {
            "mode" => access.mode = parse_mode(value)?,
            "owner" => access.owner = Some(parse_owner(value)?),
            "group" => access.group = Some(parse_group(value)?),
            _ => {
                let complaint = Complaint::new(format!("unknown option `{key}` of a Unix socket"));
                let hint = match suggest(key, ["mode", "owner", "group"]) {
                    Some(ours) => format!("did you mean `{ours}`?"),
                    None => {
                        "there are mode, owner and group: \"unix:/run/x.sock?mode=0660&owner=portcullis&group=mqtt\""
                            .to_owned()
                    }
                };
                return Err(complaint.hint(hint));
            }
        }
    }
    Ok(UnixBind { path, access })
}

/// The path of a Unix socket behind `unix:`.
pub(super) fn parse_unix_path(path: &str, document: &Document) -> Result<Arc<Path>, Complaint> {
    if path.contains('?') {
        let hint = "mode, owner and group are of sockets that the gateway opens: `bind` of [[listener]]";
        return Err(Complaint::new("a Unix socket to connect to has no options").hint(hint));
    }
    if path.is_empty() || path.ends_with('/') {
        return Err(
            Complaint::new("the path of the Unix socket is missing").hint("write \"unix:/run/portcullis/mqtt.sock\"")
        );
    }
    if path.starts_with('@') || path.starts_with("//") {
        let hint = "use a path, whose mode and owner say who may connect: \"unix:/run/portcullis/mqtt.sock\"";
        let what = if path.starts_with('@') {
            "is an abstract socket, which is not supported"
        } else {
            "begins with two slashes"
        };
        return Err(Complaint::new(format!("`{path}` {what}")).hint(hint));
    }
    let path = document.resolve(Path::new(path));
    let len = path.as_os_str().len();
    if len > MAX_UNIX_PATH {
        let message = format!("the path of the Unix socket has {len} bytes; the system allows {MAX_UNIX_PATH}");
        return Err(Complaint::new(message).hint("use a shorter path, for example in /run"));
    }
    Ok(path.into())
}

fn parse_mode(text: &str) -> Result<u32, Complaint> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|mode| (1..=0o777).contains(mode) && text.len() <= 4);
    mode.ok_or_else(|| {
        Complaint::new(format!("`{text}` is not the mode of a file"))
            .hint("in octal: \"mode=0660\" is for its owner and group")
    })
}

fn parse_owner(text: &str) -> Result<u32, Complaint> {
    let find = |name: &str| User::from_name(name).map(|user| user.map(|user| user.uid.as_raw()));
    find_id(text, "user", find)
}

fn parse_group(text: &str) -> Result<u32, Complaint> {
    let find = |name: &str| Group::from_name(name).map(|group| group.map(|group| group.gid.as_raw()));
    find_id(text, "group", find)
}

/// A number, or a name that the system knows.
fn find_id(text: &str, kind: &str, find: impl FnOnce(&str) -> nix::Result<Option<u32>>) -> Result<u32, Complaint> {
    if let Ok(id) = text.parse::<u32>() {
        // The number that means "leave it" [chown(2)].
        return if id == u32::MAX { Err(Complaint::new(format!("`{text}` is no {kind}"))) } else { Ok(id) };
    }
    match find(text) {
        Ok(Some(id)) => Ok(id),
        Ok(None) => {
            let hint = format!("use a {kind} of this machine, or its number");
            Err(Complaint::new(format!("the system has no {kind} `{text}`")).hint(hint))
        }
        Err(error) => Err(Complaint::new(format!("cannot look up the {kind} `{text}`: {error}"))),
    }
}
