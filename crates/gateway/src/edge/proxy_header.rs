//! The header of the PROXY protocol, versions 1 and 2, which a load balancer sends before the client's first byte. Enters: a
//! socket. Leaves: the client's address and what the balancer says of it; the socket at the first byte behind the header. Not
//! here: whether the peer may send one, and deadlines.

use std::io;

use proxy_header::{ParseConfig, Protocol, ProxyHeader as Header, SslInfo, Tlv};
use tokio::io::AsyncReadExt;

use crate::net::Socket;
use crate::outcome::{Reject, note_detail};
use crate::peer::{PeerAddress, ProxyHeader, ProxySsl};

/// What a header of version 1 begins with.
const V1: &[u8; 6] = b"PROXY ";
/// What a header of version 2 begins with. No header of version 1 is as short.
const V2: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// The longest header of version 1, with CRLF [proxy-protocol.txt, 2.1].
const MAX_V1: usize = 107;
/// The part of a header of version 2 that says how long it is.
const FIXED_V2: usize = 16;
/// The limit of a header of version 2 in bytes. Two addresses need 232, the longest unique ID 131.
const MAX_V2: usize = 1024;

/// Reads the header of a connection whose socket is connected to `balancer`. With `certificate`, what it says of the client's
/// certificate counts. Returns the client's address: for LOCAL, UNKNOWN and UNSPEC that of the balancer.
///
/// # Errors
/// [`Reject::ProxyHeaderMissing`] or [`Reject::ProxyHeaderInvalid`].
pub(super) async fn read(
    socket: &mut Socket,
    balancer: PeerAddress,
    certificate: bool,
) -> Result<(PeerAddress, ProxyHeader), Reject> {
    let missing = |why: &str| {
        note_detail(why);
        Reject::ProxyHeaderMissing
    };
    let invalid = |why: &str| {
        note_detail(why);
        Reject::ProxyHeaderInvalid
    };
    let mut header = Vec::with_capacity(MAX_V1);
    while header.len() < V2.len() {
        let is_complete = read_some(socket, &mut header, V2.len()).await;
        if !is_beginning(&header) {
            return Err(missing(kind_of(&header)));
        }
        match is_complete {
            Ok(true) => {}
            Ok(false) | Err(_) if header.is_empty() => return Err(missing("the connection was closed before")),
            Ok(false) | Err(_) => return Err(invalid("the connection was closed within the header")),
        }
    }
    let rest =
        if header.starts_with(V2) { read_v2(socket, &mut header).await } else { read_v1(socket, &mut header).await };
    rest.map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => invalid(&error.to_string()),
        _ => invalid("the connection was closed within the header"),
    })?;
    parse(&header, balancer, certificate).map_err(invalid)
}

/// What a connection is that does not begin with a header. Nothing of its bytes: they may be a secret.
const fn kind_of(bytes: &[u8]) -> &'static str {
    match bytes {
        [0x16, ..] => "the connection begins with TLS",
        [0x10, ..] => "the connection begins with MQTT",
        [b'A'..=b'Z', ..] => "the connection begins with text, perhaps HTTP",
        _ => "the connection begins with other bytes",
    }
}

/// The detail in the log for a header where the listener does not speak the protocol.
pub(crate) const PROXY_WITHOUT_KEY: &str =
    "the connection begins with a header of the PROXY protocol; set `proxy_protocol`";

/// Whether these are the first bytes of a header, and of nothing else.
pub(crate) fn is_proxy_header(bytes: &[u8]) -> bool {
    bytes.len() > 4 && is_beginning(bytes)
}

/// Whether a header can begin like this.
fn is_beginning(bytes: &[u8]) -> bool {
    let agrees = |signature: &[u8]| bytes.iter().zip(signature).all(|(byte, expected)| byte == expected);
    agrees(V1) || agrees(V2)
}

/// Reads until the header has `len` bytes, once. Returns whether bytes came.
async fn read_some(socket: &mut Socket, header: &mut Vec<u8>, len: usize) -> io::Result<bool> {
    let missing = len.saturating_sub(header.len()) as u64;
    socket.take(missing).read_buf(header).await.map(|read| read > 0)
}

async fn read_to(socket: &mut Socket, header: &mut Vec<u8>, len: usize) -> io::Result<()> {
    while header.len() < len {
        if !read_some(socket, header, len).await? {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

async fn read_v2(socket: &mut Socket, header: &mut Vec<u8>) -> io::Result<()> {
    read_to(socket, header, FIXED_V2).await?;
    let len = FIXED_V2 + header.last_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)));
    if len > MAX_V2 {
        let message = format!("it announces {len} bytes; {MAX_V2} are the limit");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    read_to(socket, header, len).await
}

/// A line: what comes behind it must stay in the socket, so that its end is looked for before bytes are taken.
async fn read_v1(socket: &mut Socket, header: &mut Vec<u8>) -> io::Result<()> {
    if header.contains(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is malformed"));
    }
    let mut ahead = [0; MAX_V1];
    while header.len() < MAX_V1 {
        let peeked = socket.peek(&mut ahead[header.len()..]).await?;
        let peeked = &ahead[header.len()..header.len() + peeked];
        if peeked.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let end = peeked.iter().position(|byte| *byte == b'\n');
        let len = header.len() + end.map_or(peeked.len(), |end| end + 1);
        read_to(socket, header, len).await?;
        if end.is_some() {
            return Ok(());
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, format!("the line has no end within {MAX_V1} bytes")))
}

/// Parses a whole header. The error says what is wrong with it.
fn parse(header: &[u8], balancer: PeerAddress, certificate: bool) -> Result<(PeerAddress, ProxyHeader), &'static str> {
    if header.starts_with(V2) && header.get(COMMAND).is_some_and(|command| *command == LOCAL) {
        // What follows does not count, whatever it is [proxy-protocol.txt, 2.2].
        return Ok((balancer, ProxyHeader { ssl: None, authority: None, unique_id: None }));
    }
    let (parsed, len) = Header::parse(header, ParseConfig::default()).map_err(|_| "it is malformed")?;
    if len != header.len() {
        return Err("it is malformed");
    }
    if header.starts_with(V1) && !is_strict(header) {
        return Err("it is malformed");
    }
    let client = match parsed.proxied_address() {
        Some(address) if address.protocol == Protocol::Datagram => return Err("it is of a datagram, on a stream"),
        Some(address) => address.source.into(),
        None if is_datagram(header) => return Err("it is of a datagram, on a stream"),
        None if is_of_unix_client(header) => PeerAddress::Unix,
        None => balancer,
    };
    let mut named = ProxyHeader { ssl: None, authority: None, unique_id: None };
    let (mut crc, mut ssl) = (None, None);
    let tlvs_at = tlvs_at(header);
    for tlv in Tlvs::of(header, tlvs_at) {
        let (kind, value, at) = tlv?;
        if kind == SSL {
            // Whichever counted, another reader may take the other.
            if ssl.replace(value).is_some() {
                return Err("it has two SSL TLVs");
            }
            continue;
        }
        match Tlv::decode(kind, value) {
            Ok(Tlv::Authority(name)) => named.authority = Some(name.into()),
            Ok(Tlv::UniqueId(id)) => {
                let text = std::str::from_utf8(&id).ok().filter(|text| !text.chars().any(char::is_control));
                named.unique_id = Some(text.map_or_else(|| hex::encode(&id).into(), Into::into));
            }
            Ok(Tlv::Crc32c(sum)) => crc = Some((sum, at)),
            Err(_) if kind == CRC => return Err("its checksum has not four bytes"),
            _ => {}
        }
    }
    if let Some((sum, at)) = crc {
        let mut zeroed = header.to_vec();
        zeroed[at..at + size_of::<u32>()].fill(0);
        if crc32c::crc32c(&zeroed) != sum {
            return Err("its checksum is wrong");
        }
    }
    if let Some(ssl) = ssl.filter(|_| certificate) {
        named.ssl = Some(parse_ssl(ssl)?);
    }
    Ok((client, named))
}

/// The position of version and command in version 2, and the command for a connection of the balancer's own.
const COMMAND: usize = 12;
const LOCAL: u8 = 0x20;

/// Types of TLVs [proxy-protocol.txt, 2.2].
const CRC: u8 = 0x03;
const SSL: u8 = 0x20;
const SSL_CN: u8 = 0x22;

/// What the balancer says of the client's certificate. A common name counts only if it is one, and was verified: HAProxy sends
/// it whatever the result was.
fn parse_ssl(value: &[u8]) -> Result<ProxySsl, &'static str> {
    const MALFORMED: &str = "its SSL TLV is malformed";
    let Ok(Tlv::Ssl(info)) = Tlv::decode(SSL, value) else { return Err(MALFORMED) };
    let verified = is_verified(&info);
    let (mut cn, mut count) = (None, 0);
    for tlv in Tlvs::of(value, SSL_FIXED) {
        let (kind, value, _) = tlv.map_err(|_| MALFORMED)?;
        if kind == SSL_CN {
            count += 1;
            cn = std::str::from_utf8(value).ok().filter(|cn| !cn.is_empty() && !cn.contains('\0'));
        }
    }
    Ok(ProxySsl { verified, cn: cn.filter(|_| verified && count == 1).map(Into::into) })
}

/// The flags and the verification result, in front of the TLVs within an SSL TLV.
const SSL_FIXED: usize = 5;

fn is_verified(info: &SslInfo<'_>) -> bool {
    info.client_ssl() && (info.client_cert_conn() || info.client_cert_sess()) && info.verify() == 0
}

/// Whether the header is one of version 2 for a connection of a Unix socket.
fn is_of_unix_client(header: &[u8]) -> bool {
    header.starts_with(V2) && family(header) == 3
}

fn is_datagram(header: &[u8]) -> bool {
    header.starts_with(V2) && header.get(13).is_some_and(|it| it & 0x0F == 2)
}

/// Whether a line has its fields as the standard writes them: `PROXY UNKNOWN`, ports without a sign and leading zeros [2.1].
fn is_strict(line: &[u8]) -> bool {
    let line = line.strip_suffix(b"\r\n").unwrap_or(line);
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    match fields.as_slice() {
        [_, b"UNKNOWN", ..] => true,
        [_, _, _, _, ports @ ..] => {
            ports.iter().all(|port| !port.starts_with(b"+") && (port.len() == 1 || !port.starts_with(b"0")))
        }
        _ => false,
    }
}

fn family(header: &[u8]) -> u8 {
    header.get(13).map_or(0, |it| it >> 4)
}

/// Where the TLVs begin: behind the addresses. Version 1 has none.
fn tlvs_at(header: &[u8]) -> usize {
    let addresses = match family(header) {
        1 => 12,
        2 => 36,
        3 => 216,
        _ => 0,
    };
    if header.starts_with(V2) { FIXED_V2 + addresses } else { header.len() }
}

/// Type, value and position of each TLV.
struct Tlvs<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Tlvs<'a> {
    fn of(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }
}

impl<'a> Iterator for Tlvs<'a> {
    type Item = Result<(u8, &'a [u8], usize), &'static str>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.bytes.get(self.at..).filter(|rest| !rest.is_empty())?;
        let tlv = rest.split_first_chunk().and_then(|(&[kind, high, low], rest)| {
            Some((kind, rest.get(..usize::from(u16::from_be_bytes([high, low])))?))
        });
        let Some((kind, value)) = tlv else {
            self.at = self.bytes.len();
            return Some(Err("a TLV is longer than the header"));
        };
        let at = self.at + 3;
        self.at = at + value.len();
        Some(Ok((kind, value, at)))
    }
}

/// Whatever is read as a header is one whole, and a common name is only of a verified certificate.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let balancer = PeerAddress::Unix;
    let Ok((address, header)) = parse(bytes, balancer, true) else { return };
    assert!(bytes.starts_with(V1) && bytes.ends_with(b"\r\n") || bytes.starts_with(V2), "{}", bytes.escape_ascii());
    assert!(header.ssl.as_ref().is_none_or(|ssl| ssl.verified || ssl.cn.is_none()));
    // What the header says of the client does not depend on whether its certificate counts.
    let other = parse(bytes, balancer, false);
    assert!(other.is_ok_and(|(same, header)| same == address && header.ssl.is_none()));
}

#[cfg(test)]
#[path = "proxy_header/tests.rs"]
mod tests;
