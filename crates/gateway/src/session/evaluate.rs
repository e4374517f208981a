//! Evaluates whether a client may be connected. The same function runs at admission, after a full or a resumed handshake,
//! and whenever the configuration, a CRL or the registry changes. It decides whether the client's evidence is *sufficient*
//! under the current configuration and revocation data, not only whether it is still valid. Not here: I/O or waiting.

use std::sync::Arc;

use crate::evidence::Evidence;
use crate::outcome::CloseReason;
use crate::runtime::{Listener, Runtime};
use crate::sessions::{ClientEvidence, Proof};

/// Evaluates a client by the current configuration and revocation data. `now` is in seconds since 1970.
///
/// # Errors
/// Why the client may not be connected.
pub(crate) fn evaluate(client: ClientEvidence<'_>, runtime: &Runtime, now: i64) -> Result<(), CloseReason> {
    match runtime.listener(client.listener) {
        Some(listener) => evaluate_at(listener, client, runtime, now),
        None => evaluate_without_listener(client, runtime, now),
    }
}

/// The listener whose rules apply to a client: the one that it connected to. If that was removed, perhaps only renamed, the
/// first that would admit the client: of a session whose packets are inspected, one with rules for them before others; of
/// another, one without, since it cannot follow any. `None`: no listener would.
pub(crate) fn listener_of<'r>(
    client: ClientEvidence<'_>,
    is_inspected: bool,
    runtime: &'r Runtime,
    now: i64,
) -> Option<&'r Listener> {
    if let Some(listener) = runtime.listener(client.listener) {
        return Some(listener);
    }
    let admits = |listener: &&Arc<Listener>| evaluate_at(listener, client, runtime, now).is_ok();
    let admitting = || runtime.listeners.iter().filter(admits);
    let fitting = admitting().find(|listener| listener.packets.binds_sessions() == is_inspected);
    fitting.or_else(|| admitting().next()).map(|listener| &**listener)
}

fn evaluate_at(
    listener: &Listener,
    client: ClientEvidence<'_>,
    runtime: &Runtime,
    now: i64,
) -> Result<(), CloseReason> {
    if client.address.is_some_and(|address| !listener.addresses.allows(address)) {
        return Err(CloseReason::AddressDenied);
    }
    evaluate_way(listener, client)?;
    match client.from_tls {
        Proof::Pending => return Ok(()),
        Proof::Nothing => evaluate_tls(None, listener, now)?,
        Proof::Proved(evidence) => evaluate_tls(Some(evidence), listener, now)?,
    }
    match client.from_authenticator {
        Proof::Pending => Ok(()),
        Proof::Nothing => evaluate_authentication(None, listener, runtime, now),
        Proof::Proved(evidence) => evaluate_authentication(Some(evidence), listener, runtime, now),
    }
}

/// Whether a client may come the way it has come: through whom, and from which page.
fn evaluate_way(listener: &Listener, client: ClientEvidence<'_>) -> Result<(), CloseReason> {
    let admits_socket = listener.proxy.as_ref().is_none_or(|proxy| proxy.admits(client.socket));
    let trusts_balancer = |it| listener.proxy.as_ref().is_some_and(|proxy| proxy.trusts(it));
    let trusts_proxy = |it| listener.upgrade.as_ref().is_some_and(|upgrade| upgrade.trusts(it));
    if !admits_socket || !client.balancer.is_none_or(trusts_balancer) || !client.http_proxy.is_none_or(trusts_proxy) {
        return Err(CloseReason::BalancerUntrusted);
    }
    let admits = |origin| listener.upgrade.as_ref().is_none_or(|upgrade| upgrade.admits(origin));
    if client.origin.is_none_or(admits) { Ok(()) } else { Err(CloseReason::OriginDenied) }
}

/// The listener was removed, perhaps only renamed: the session continues where another listener would admit it. If any of
/// them knows that its evidence is revoked or expired, that counts.
fn evaluate_without_listener(client: ClientEvidence<'_>, runtime: &Runtime, now: i64) -> Result<(), CloseReason> {
    let verdicts: Vec<_> =
        runtime.listeners.iter().map(|listener| evaluate_at(listener, client, runtime, now)).collect();
    if let Some(against) = verdicts.iter().find(|verdict| verdict.is_err_and(|reason| !reason.is_of_listener())) {
        return *against;
    }
    if verdicts.contains(&Ok(())) { Ok(()) } else { verdicts.first().copied().unwrap_or(Ok(())) }
}

fn evaluate_tls(evidence: Option<&Evidence>, listener: &Listener, now: i64) -> Result<(), CloseReason> {
    match &listener.tls {
        Some(tls) => tls.evaluate(evidence, listener.uses_device, now),
        // The listener no longer uses TLS, so evidence from TLS is no longer accepted.
        None => match evidence {
            None => Ok(()),
            Some(Evidence::Chain(_)) => Err(CloseReason::CaRemoved),
            Some(_) => Err(CloseReason::CredentialWithdrawn),
        },
    }
}

fn evaluate_authentication(
    evidence: Option<&Evidence>,
    listener: &Listener,
    runtime: &Runtime,
    now: i64,
) -> Result<(), CloseReason> {
    // Where no authenticator is asked any more, nothing can be withdrawn.
    if listener.authenticators.is_empty() {
        return Ok(());
    }
    let Some(Evidence::Authenticated { by, what }) = evidence else {
        // When it connected no authenticator was asked; now one would be.
        return Err(CloseReason::CredentialWithdrawn);
    };
    match runtime.authenticator(by) {
        Some(authenticator) if listener.authenticators.iter().any(|it| it.name == *by) => {
            authenticator.evaluate(what, listener.uses_device, now)
        }
        _ => Err(CloseReason::CredentialWithdrawn),
    }
}

#[cfg(test)]
mod tests;
