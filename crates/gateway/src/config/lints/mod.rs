//! Warns of settings that are legal, but probably mistakes, or unsafe. Enters: valid settings. Leaves: warnings, and errors
//! for what cannot work at all.

mod addresses;
mod clients;
mod machine;
mod requests;
mod rules;
mod topics;

pub(crate) use machine::{Demand, UpstreamDemand};

use super::diagnostics::{Complaint, Diagnostics};
use super::tables::{Authenticator, Bind, Listener, Method, Password, Settings, Tls, TlsMode};

/// Runs all lints.
pub(super) fn run(settings: &Settings, diagnostics: &mut Diagnostics) {
    for authenticator in &settings.authenticators {
        warn_of_unused_authenticator(authenticator, settings, diagnostics);
    }
    warn_of_unused_identity(settings, diagnostics);
    // What was rejected would seem to be missing.
    if diagnostics.has_errors() {
        return;
    }
    for policy in &settings.topic_policies {
        if !settings.listeners.iter().any(|listener| listener.topics.as_ref() == Some(&policy.name)) {
            let complaint = Complaint::new("no listener uses this topic policy");
            diagnostics.warning(&policy.table, complaint.hint(format!("topics = \"{}\" in [[listener]]", policy.name)));
        }
        rules::run(policy, diagnostics);
    }
    for listener in &settings.listeners {
        addresses::run(listener, diagnostics);
        clients::run(listener, settings, diagnostics);
        topics::run(listener, settings, diagnostics);
        if !listener.authenticate.is_empty() && listener.tls.is_none() && !is_behind_tls(listener) {
            let complaint = Complaint::new("clients send passwords and tokens to this listener unencrypted");
            let hint = if listener.protocol.is_websocket() { "protocol = \"wss\"" } else { "protocol = \"tls\"" };
            diagnostics.warning(&listener.table, complaint.hint(hint));
        }
        requests::run(listener, settings, diagnostics);
    }
}

/// Whether a proxy on the way may end TLS, or nothing leaves this machine.
fn is_behind_tls(listener: &Listener) -> bool {
    listener.proxy_protocol.is_some()
        || listener.websocket.as_ref().is_some_and(|websocket| !websocket.trusted_proxies.is_empty())
        || listener.bind.iter().all(|bind| matches!(bind, Bind::Unix(_)))
}

fn warn_of_unused_authenticator(authenticator: &Authenticator, settings: &Settings, diagnostics: &mut Diagnostics) {
    let is_registry = matches!(authenticator.method, Method::Registry(_));
    let is_used_by = |listener: &Listener| {
        let by_keys = is_registry && listener.tls.as_ref().is_some_and(uses_registry);
        by_keys || listener.authenticate.contains(&authenticator.name)
    };
    if !settings.listeners.iter().any(is_used_by) {
        let complaint = Complaint::new("no listener uses this authenticator");
        diagnostics.warning(&authenticator.table, complaint.hint("authenticate = [...] in [[listener]]"));
    }
}

/// Whether keys of the registry are accepted in handshakes.
fn uses_registry(tls: &Tls) -> bool {
    match &tls.mode {
        TlsMode::Psk(psk) => psk.registry,
        TlsMode::Certificate(tls) => tls.raw_keys.as_ref().is_some_and(|keys| keys.registry),
    }
}

fn warn_of_unused_identity(settings: &Settings, diagnostics: &mut Diagnostics) {
    let Some(identity) = &settings.identity else { return };
    let signs = |it: &Listener| matches!(it.connect.password, Some(Password::Token(_)));
    if !settings.listeners.iter().any(signs) && !diagnostics.has_errors() {
        let complaint = Complaint::new("[identity] has no effect: no `connect.password` is a table");
        let hint = "password = { claims = { sub = 'cert.subject.cn' }, audience = \"brokers\" }";
        diagnostics.warning(&identity.table, complaint.hint(hint));
    }
    if settings.admin.is_none() {
        let complaint = Complaint::new("brokers cannot fetch the public keys: [admin] is not configured");
        diagnostics.warning(&identity.table, complaint.hint("[admin] bind = \"127.0.0.1:9080\""));
    }
}
