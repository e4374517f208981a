//! Evaluates whether a client may be connected. The same function runs at admission, after a full or a resumed handshake,
//! and whenever the configuration, a CRL or the registry changes. It decides whether the client's evidence is *sufficient*
//! under the current configuration and revocation data, not only whether it is still valid. Never here: I/O or waiting.

use super::index::Claim;
use crate::evidence::Evidence;
use crate::outcome::CloseReason;
use crate::runtime::{Listener, Runtime};

/// Evaluates a client by the current configuration and revocation data. `now` is in seconds since 1970.
///
/// # Errors
/// Why the client may not be connected.
pub fn evaluate(claim: Claim<'_>, runtime: &Runtime, now: i64) -> Result<(), CloseReason> {
    let listener = runtime.listener(claim.listener);
    if listener.is_some_and(|listener| !listener.addresses.allows(claim.address)) {
        return Err(CloseReason::AddressDenied);
    }
    match listener {
        Some(listener) => evaluate_tls(claim.from_tls, listener, now)?,
        None => evaluate_tls_of_removed(claim.from_tls, runtime, now)?,
    }
    let Some(evidence) = claim.from_authenticator else { return Ok(()) };
    evaluate_authentication(evidence, listener, runtime, now)
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

/// Evaluates a session whose listener was removed or renamed. It continues if another listener accepts its evidence, and
/// none reports the evidence as revoked or expired.
fn evaluate_tls_of_removed(evidence: Option<&Evidence>, runtime: &Runtime, now: i64) -> Result<(), CloseReason> {
    if evidence.is_none() {
        return Ok(());
    }
    let is_foreign = |reason| matches!(reason, CloseReason::CaRemoved | CloseReason::CredentialWithdrawn);
    let verdicts: Vec<_> = runtime.listeners.iter().map(|listener| evaluate_tls(evidence, listener, now)).collect();
    if let Some(against) = verdicts.iter().find(|verdict| verdict.is_err_and(|reason| !is_foreign(reason))) {
        return *against;
    }
    if verdicts.contains(&Ok(())) { Ok(()) } else { verdicts.first().copied().unwrap_or(Ok(())) }
}

fn evaluate_authentication(
    evidence: Option<&Evidence>,
    listener: Option<&std::sync::Arc<Listener>>,
    runtime: &Runtime,
    now: i64,
) -> Result<(), CloseReason> {
    // A listener that no longer authenticates clients accepts all of them.
    if listener.is_some_and(|listener| listener.authenticators.is_empty()) {
        return Ok(());
    }
    let Some(Evidence::Authenticated { by, what }) = evidence else {
        // The client connected before the listener had an authenticator; now it would have to authenticate itself.
        return if listener.is_some() { Err(CloseReason::CredentialWithdrawn) } else { Ok(()) };
    };
    let is_asked = |listener: &Listener| listener.authenticators.iter().any(|it| it.name == *by);
    let uses_device = listener.is_none_or(|listener| listener.uses_device);
    match runtime.authenticator(by) {
        Some(authenticator) if listener.is_none_or(|listener| is_asked(listener)) => {
            authenticator.evaluate(what, uses_device, now)
        }
        _ => Err(CloseReason::CredentialWithdrawn),
    }
}

#[cfg(test)]
mod tests;
