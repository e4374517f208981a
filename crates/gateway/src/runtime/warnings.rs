//! What is legal in a configuration, but seldom meant.

use crate::config::model::{self, AuthenticatorKind, ClientAuth};
use crate::config::{At, Document};
use crate::policy::Admission;

/// Tables without effect.
pub(super) fn warn_of_what_nobody_uses(config: &model::Config, document: &mut Document) {
    for table in &config.authenticator {
        let is_named = |listener: &At<model::Listener>| {
            listener.authenticate.iter().any(|name| table.name.as_ref().is_some_and(|own| own.value == name.value))
        };
        let is_by_keys = |listener: &At<model::Listener>| {
            let wants = |registry: Option<&At<bool>>| registry.is_some_and(|registry| registry.value);
            let tls = listener.tls.as_ref();
            wants(tls.and_then(|tls| tls.psk.as_ref()?.registry.as_ref()))
                || wants(tls.and_then(|tls| tls.raw_keys.as_ref()?.registry.as_ref()))
        };
        let is_registry = table.kind.as_ref().is_some_and(|kind| kind.value == AuthenticatorKind::Registry);
        if !config.listener.iter().any(|listener| is_named(listener) || (is_registry && is_by_keys(listener))) {
            let problem = document.problems.warning(&table.span, "no listener asks this authenticator");
            problem.hint("authenticate = [...] in [[listener]]");
        }
    }
    let Some(identity) = &config.identity else { return };
    let signs = |listener: &At<model::Listener>| {
        listener.connect.password.as_ref().is_some_and(|at| matches!(at.value, model::Password::Token(_)))
    };
    if !config.listener.iter().any(signs) {
        let problem = document.problems.warning(&identity.span, "nothing is signed: no `connect.password` is a table");
        problem.hint("password = { claims = { sub = 'cert.subject.cn' }, audience = \"brokers\" }");
    }
    if config.admin.is_none() {
        let message = "brokers cannot fetch the public key: there is no [admin]";
        document.problems.warning(&identity.span, message).hint("[admin] bind = \"127.0.0.1:9080\"");
    }
}

/// Nobody is asked to prove anything, or what is proved binds nothing.
pub(super) fn warn_of_open_door(
    listener: &At<model::Listener>,
    admission: &Admission,
    config: &model::Config,
    document: &mut Document,
) {
    let tls = listener.tls.as_ref();
    let has_keys = tls.is_some_and(|tls| tls.psk.is_some() || (tls.raw_keys.is_some() && tls.client_ca.is_none()));
    let auth = tls.and_then(|tls| tls.client_auth.as_ref()).map(|auth| auth.value);
    let asks = match auth {
        Some(auth) => auth,
        None if has_keys || tls.is_some_and(|tls| tls.client_ca.is_some()) => ClientAuth::Required,
        None => ClientAuth::None,
    };
    let is_asked = !listener.authenticate.is_empty();
    if asks == ClientAuth::None && admission.is_empty() && !is_asked {
        let problem =
            document.problems.warning(&listener.span, "clients of this listener prove nothing to the gateway");
        problem.hint("set `client_ca` in [listener.tls], `authenticate`, or `require` in [listener.admit]");
    } else if asks == ClientAuth::Optional && admission.is_empty() && !is_asked {
        let message = "certificates are optional, and nothing is required of clients without one";
        document.problems.warning(&listener.span, message).hint("add `require` to [listener.admit]");
    } else if (asks == ClientAuth::Required || is_asked) && admission.is_empty() && listener.connect.client_id.is_none()
    {
        let proof = if has_keys {
            "key"
        } else if asks == ClientAuth::Required {
            "certificate"
        } else {
            "user, token or device"
        };
        let message = format!("any device can take any other device's client ID: nothing binds it to the {proof}");
        let proved = proved_names(listener, config);
        document.problems.warning(&listener.span, message).hint(match proved.as_slice() {
            [name] => format!("[listener.admit] require = ['mqtt.client_id == {name}']"),
            names => {
                format!("[listener.admit] require: compare mqtt.client_id with what is proved: {}", names.join(", "))
            }
        });
    }
    let kinds = kinds_asked(listener, config);
    let has_token = kinds.iter().any(|kind| [AuthenticatorKind::Jwt, AuthenticatorKind::Registry].contains(kind));
    let is_username_bound = listener.connect.username.is_some()
        || listener.admit.require.iter().any(|expression| expression.value.contains("mqtt.username"));
    if has_token && !is_username_bound {
        let message = "a client may send the broker any user name: its token, or its key, says nothing of that";
        let problem = document.problems.warning(&listener.span, message);
        problem.hint("[listener.connect] username = 'jwt.sub', or 'device.id'");
    }
    if is_asked && tls.is_none() {
        let message = "passwords and tokens come over this listener in the clear";
        document.problems.warning(&listener.span, message).hint("protocol = \"tls\"");
    }
}

/// What kinds of authenticators a listener asks.
fn kinds_asked(listener: &model::Listener, config: &model::Config) -> Vec<AuthenticatorKind> {
    let named = |table: &&At<model::Authenticator>| {
        table.name.as_ref().is_some_and(|name| listener.authenticate.iter().any(|asked| asked.value == name.value))
    };
    config.authenticator.iter().filter(named).filter_map(|table| Some(table.kind.as_ref()?.value)).collect()
}

/// What expressions may hold a client ID against, that a client of this listener has proved.
fn proved_names(listener: &model::Listener, config: &model::Config) -> Vec<&'static str> {
    let mut names: Vec<&str> = kinds_asked(listener, config)
        .into_iter()
        .map(|kind| match kind {
            AuthenticatorKind::PasswordFile => "mqtt.username",
            AuthenticatorKind::Jwt => "jwt.sub",
            AuthenticatorKind::Http => "http.id (an attribute of your service's answer)",
            AuthenticatorKind::Registry => "device.id",
        })
        .collect();
    if let Some(tls) = &listener.tls {
        let of_registry = |registry: Option<&At<bool>>, file| match registry {
            Some(registry) if registry.value => "device.id",
            _ => file,
        };
        names.extend(tls.client_ca.as_ref().map(|_| "cert.subject.cn"));
        names.extend(tls.psk.as_ref().map(|psk| of_registry(psk.registry.as_ref(), "tls.psk_identity")));
        names.extend(tls.raw_keys.as_ref().map(|keys| of_registry(keys.registry.as_ref(), "tls.key_name")));
    }
    // A password is of use beside others only for those who have come by one.
    if names.len() > 1 {
        names.retain(|name| *name != "mqtt.username");
    }
    names.sort_unstable();
    names.dedup();
    names
}
