//! `proxy_protocol` of `[[listener]]`.

use schemars::JsonSchema;
use serde::Deserialize;

use super::super::diagnostics::{Complaint, Reported};
use super::super::document::Document;
use super::super::values::{Origin, Setting};

/// The PROXY protocol, which load balancers in front of the listener speak.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ProxyProtocol", extend("required" = ["from"]))]
pub(super) struct ProxyProtocolTable {
    /// Networks of the balancers, whose connections have to begin with a header of version 1 or 2; `unix` for those that connect
    /// by a Unix socket. The address in the header is the client's, for all rules, limits and logs.
    from: Option<Setting<Vec<Setting<Origin>>>>,
    /// Whether to reject every other peer. If `false`, others connect without a header, and count with their own address.
    required: bool,
    /// Whether to use what a balancer that terminates TLS says of the client's certificate: `proxy.ssl` in expressions.
    certificate: bool,
}

impl Default for ProxyProtocolTable {
    fn default() -> Self {
        Self { from: None, required: true, certificate: false }
    }
}

/// The PROXY protocol on a listener.
#[derive(Clone, Debug)]
pub struct ProxyProtocol {
    /// Peers that send a header.
    pub from: Vec<Origin>,
    /// Whether every other peer is rejected.
    pub required: bool,
    /// Whether what the header says of the client's certificate counts.
    pub certificate: bool,
}

pub(super) fn validate(
    table: &Setting<ProxyProtocolTable>,
    document: &mut Document,
) -> Result<ProxyProtocol, Reported> {
    const HINT: &str = "the networks of the load balancers: from = [\"10.0.0.0/8\"]";
    let from = document.require(table.from.as_ref(), table, "from", HINT)?;
    if from.is_empty() {
        if document.is_unread("from", table) {
            return Err(document.diagnostics.already_reported());
        }
        return Err(document.error(from, Complaint::new("`from` is empty").hint(HINT)));
    }
    for origin in &from.value {
        if origin.network().is_some_and(|net| net.prefix_len() == 0) {
            let message = "whoever connects from here chooses the address that it has for all rules, limits and logs";
            document.warning(origin, Complaint::new(message).hint(HINT));
        }
    }
    let from = from.iter().map(|origin| origin.value).collect();
    Ok(ProxyProtocol { from, required: table.required, certificate: table.certificate })
}
