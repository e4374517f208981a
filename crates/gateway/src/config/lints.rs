//! Warns of settings that are legal, but probably mistakes, or unsafe. Enters: valid settings. Leaves: warnings, never
//! errors.

use super::diagnostics::{Complaint, Diagnostics};
use super::tables::{Authenticator, Listener, Method, Password, Settings, Tls, TlsMode};

/// Runs all lints.
pub(super) fn run(settings: &Settings, diagnostics: &mut Diagnostics) {
    for authenticator in &settings.authenticators {
        warn_of_unused_authenticator(authenticator, settings, diagnostics);
    }
    warn_of_unused_identity(settings, diagnostics);
    // A listener with a rejected part would seem to lack that part.
    for listener in settings.listeners.iter().filter(|listener| !listener.is_incomplete) {
        warn_of_missing_authentication(listener, settings, diagnostics);
    }
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
    let signs = |it: &Listener| it.is_incomplete || matches!(it.connect.password, Some(Password::Token(_)));
    if !settings.listeners.iter().any(signs) {
        let complaint = Complaint::new("[identity] has no effect: no `connect.password` is a table");
        let hint = "password = { claims = { sub = 'cert.subject.cn' }, audience = \"brokers\" }";
        diagnostics.warning(&identity.table, complaint.hint(hint));
    }
    if settings.admin.is_none() {
        let complaint = Complaint::new("brokers cannot fetch the public keys: [admin] is not configured");
        diagnostics.warning(&identity.table, complaint.hint("[admin] bind = \"127.0.0.1:9080\""));
    }
}

/// What a listener requires of clients in the handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum RequiredProof {
    None,
    OptionalCertificate,
    Certificate,
    Key,
}

impl RequiredProof {
    fn of(listener: &Listener) -> Self {
        match listener.tls.as_ref().map(|tls| &tls.mode) {
            None => Self::None,
            Some(TlsMode::Psk(_)) => Self::Key,
            Some(TlsMode::Certificate(tls)) => match (&tls.client, &tls.raw_keys) {
                (Some(client), _) if client.required => Self::Certificate,
                (Some(_), _) => Self::OptionalCertificate,
                (None, Some(_)) => Self::Key,
                (None, None) => Self::None,
            },
        }
    }
}

/// Warns of a listener that authenticates no client, or does not bind the client ID or user name to the identity.
fn warn_of_missing_authentication(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    let proof = RequiredProof::of(listener);
    let admits_all = listener.require.is_empty();
    let authenticates = !listener.authenticate.is_empty();
    if proof == RequiredProof::None && admits_all && !authenticates {
        let complaint = Complaint::new("this listener does not authenticate clients");
        let hint = "set `client_ca` in [listener.tls], `authenticate`, or `require` in [listener.admit]";
        diagnostics.warning(&listener.table, complaint.hint(hint));
    } else if proof == RequiredProof::OptionalCertificate && admits_all && !authenticates {
        let complaint =
            Complaint::new("client certificates are optional, and clients without one are not authenticated");
        diagnostics.warning(&listener.table, complaint.hint("add `require` to [listener.admit]"));
    } else if admits_all && listener.connect.client_id.is_none() {
        warn_of_unbound_client_id(listener, proof, settings, diagnostics);
    }
    warn_of_unbound_username(listener, settings, diagnostics);
    if authenticates && listener.tls.is_none() {
        let complaint = Complaint::new("clients send passwords and tokens to this listener unencrypted");
        diagnostics.warning(&listener.table, complaint.hint("protocol = \"tls\""));
    }
}

/// Warns if clients of an authenticator that proves a name may send another user name.
fn warn_of_unbound_username(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    let methods = methods_of(listener, settings);
    let proved = methods.iter().filter_map(|method| match method {
        Method::Jwt(_) => Some("jwt.sub"),
        Method::Registry(_) => Some("device.id"),
        Method::PasswordFile(_) | Method::Http(_) => None,
    });
    let proved: Vec<&str> = proved.collect();
    let is_bound = listener.connect.username.is_some()
        || listener.require.iter().any(|expression| expression.uses("mqtt.username"));
    if proved.is_empty() || is_bound {
        return;
    }
    // Without has(), clients of the other authenticators would be rejected.
    let is_only = methods.len() == 1;
    let name = |name: &&str| if is_only { (*name).to_owned() } else { format!("has({name}) ? {name} : mqtt.username") };
    let names: Vec<String> = proved.iter().map(name).collect();
    let message = "a client may send the broker any user name: its token or key does not bind the user name";
    let hint = format!("[listener.connect] username = '{}'", names.join("', or '"));
    diagnostics.warning(&listener.table, Complaint::new(message).hint(hint));
}

fn warn_of_unbound_client_id(
    listener: &Listener,
    proof: RequiredProof,
    settings: &Settings,
    diagnostics: &mut Diagnostics,
) {
    let what = match proof {
        RequiredProof::Key => "key",
        RequiredProof::Certificate => "certificate",
        RequiredProof::None | RequiredProof::OptionalCertificate => "user, token or device",
    };
    let message = format!("any device can use any other device's client ID: nothing binds the client ID to the {what}");
    let hint = match authenticated_names(listener, settings).as_slice() {
        [name] => format!("[listener.admit] require = ['mqtt.client_id == {name}']"),
        names => {
            format!("[listener.admit] require: compare mqtt.client_id with an authenticated name: {}", names.join(", "))
        }
    };
    diagnostics.warning(&listener.table, Complaint::new(message).hint(hint));
}

/// How a listener authenticates clients.
fn methods_of<'a>(listener: &Listener, settings: &'a Settings) -> Vec<&'a Method> {
    let is_used = |authenticator: &&Authenticator| listener.authenticate.contains(&authenticator.name);
    settings.authenticators.iter().filter(is_used).map(|authenticator| &authenticator.method).collect()
}

/// The authenticated names of a client of this listener that expressions can compare a client ID with.
fn authenticated_names(listener: &Listener, settings: &Settings) -> Vec<&'static str> {
    let mut names: Vec<&str> = methods_of(listener, settings)
        .into_iter()
        .map(|method| match method {
            Method::PasswordFile(_) => "mqtt.username",
            Method::Jwt(_) => "jwt.sub",
            Method::Http(_) => "http.id (an attribute of your service's response)",
            Method::Registry(_) => "device.id",
        })
        .collect();
    let key = |registry, name| if registry { "device.id" } else { name };
    match listener.tls.as_ref().map(|tls| &tls.mode) {
        Some(TlsMode::Psk(psk)) => names.push(key(psk.registry, "tls.psk_identity")),
        Some(TlsMode::Certificate(tls)) => {
            names.extend(tls.client.as_ref().map(|_| "cert.subject.cn"));
            names.extend(tls.raw_keys.as_ref().map(|keys| key(keys.registry, "tls.key_name")));
        }
        None => {}
    }
    // A user name that a password proves matters only if nothing else identifies the client.
    if names.len() > 1 {
        names.retain(|name| *name != "mqtt.username");
    }
    names.sort_unstable();
    names.dedup();
    names
}
