//! Whether a client may be connected: the one function that is asked when it is admitted, by a full handshake or a resumed
//! one, and whenever something has changed. It asks whether what the client has proved is *enough now*, under the
//! configuration and the revocation data of the moment, and not only whether it is still good.

use super::index::Claim;
use crate::evidence::Evidence;
use crate::outcome::CloseReason;
use crate::runtime::{Listener, Runtime};

/// Whether a client with this claim may be connected. `now` is in seconds since 1970.
///
/// # Errors
/// Why it may not.
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
        // In the clear nothing is proved, so what was proved by TLS counts no more.
        None => match evidence {
            None => Ok(()),
            Some(Evidence::Chain(_)) => Err(CloseReason::CaRemoved),
            Some(_) => Err(CloseReason::CredentialWithdrawn),
        },
    }
}

/// The listener is gone, perhaps only renamed: then another one accepts what the session rests on. If any of them knows
/// that it is revoked or expired, that counts.
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
    // Where no authenticator is asked any more, nothing can be withdrawn.
    if listener.is_some_and(|listener| listener.authenticators.is_empty()) {
        return Ok(());
    }
    let Some(Evidence::Authenticated { by, what }) = evidence else {
        // When it connected no authenticator was asked; now one would be.
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
