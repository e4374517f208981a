//! The client's address, as HTTP proxies in front name it. Enters: the headers of a request that a trusted proxy has sent. Leaves: the
//! address of the client.

use std::net::{IpAddr, SocketAddr};

use super::headers::Headers;
use crate::limits::AddressRules;
use crate::peer::PeerAddress;

/// Why the headers name no client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ambiguous {
    /// Headers of several kinds name different clients: the proxy sets one kind and passes on what the client wrote into another.
    Different,
    /// `Forwarded` has a quote that does not end: the client may have hidden what the proxy has added behind it.
    Unquoted,
}

/// The client of a request that came from the proxy `peer`: the rightmost address that is not of a proxy. What stands left of
/// it, the client may have written. Without an address, `peer`.
///
/// # Errors
/// It is not certain what the proxy has said.
pub(super) fn client(
    headers: &Headers<'_, '_>,
    proxies: &AddressRules,
    peer: PeerAddress,
) -> Result<PeerAddress, Ambiguous> {
    let commas = |name| headers.all(name).flat_map(|line| line.split(|byte| *byte == b',')).map(parse).collect();
    let mut forwarded = Vec::new();
    for line in headers.all("forwarded") {
        for element in split_unquoted(line, b',')? {
            forwarded.push(of_element(element)?);
        }
    }
    let kinds: [Vec<Option<IpAddr>>; 3] =
        [commas("x-forwarded-for"), headers.all("x-real-ip").map(parse).collect(), forwarded];
    let mut named = kinds.iter().filter(|addresses| !addresses.is_empty()).map(|it| rightmost(it, proxies, peer));
    let Some(first) = named.next() else { return Ok(peer) };
    if named.all(|other| other == first) { Ok(first) } else { Err(Ambiguous::Different) }
}

fn rightmost(addresses: &[Option<IpAddr>], proxies: &AddressRules, peer: PeerAddress) -> PeerAddress {
    let mut last = peer;
    for address in addresses.iter().rev() {
        // Whoever wrote what is no address is not known: the nearest proxy counts.
        let Some(ip) = address else { return peer };
        last = (*ip, 0).into();
        if !proxies.allows(last) {
            break;
        }
    }
    last
}

/// An address, with or without a port.
fn parse(text: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(text).ok()?.trim();
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    let ip = bare.parse().ok().or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    ip.map(|ip: IpAddr| ip.to_canonical())
}

/// The address in an element of `Forwarded` [RFC 7239, 4].
fn of_element(element: &[u8]) -> Result<Option<IpAddr>, Ambiguous> {
    let pairs = split_unquoted(element, b';')?;
    let mut values = pairs.into_iter().filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (name, value) = (pair[..at].trim_ascii(), pair[at + 1..].trim_ascii());
        name.eq_ignore_ascii_case(b"for").then_some(value)
    });
    let Some(value) = values.next().filter(|_| values.next().is_none()) else { return Ok(None) };
    Ok(parse(value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value)))
}

/// Splits at a separator that is not within quotes [RFC 9110, 5.6.4].
fn split_unquoted(text: &[u8], separator: u8) -> Result<Vec<&[u8]>, Ambiguous> {
    let (mut parts, mut begin) = (Vec::new(), 0);
    let (mut is_quoted, mut is_escaped) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if is_quoted => is_escaped = true,
            b'"' => is_quoted = !is_quoted,
            _ if *byte == separator && !is_quoted => {
                parts.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[begin..]);
    if is_quoted { Err(Ambiguous::Unquoted) } else { Ok(parts) }
}
