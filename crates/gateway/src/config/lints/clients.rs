//! Looks at a listener by the kinds of clients that it has: those that one authenticator knows, with or without a
//! certificate or key. Finds kinds that get in without any proof, under a name that they did not prove, or not at all.

use super::super::diagnostics::{Complaint, Diagnostics, Reported};
use super::super::tables::{Authenticator, BanKey, Bind, Listener, Method, Password, Settings, TlsMode};
use super::super::values::{Located, Origin, Setting};
use crate::expr::{ClientKind, Expression};
use crate::peer::{FACTS, root_of};
use crate::util::suggest::suggest;

const CLIENT_ID: &str = "mqtt.client_id";
const USERNAME: &str = "mqtt.username";

/// Runs the lints of one listener.
pub(super) fn run(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    if report_unknown_names(listener, settings, diagnostics)
        .and_then(|()| report_contradictions(listener, diagnostics))
        .is_err()
    {
        return;
    }
    report_impossible_values(listener, settings, diagnostics);
    let all = kinds_of(listener, settings);
    let admitted: Vec<&Clients<'_>> = all.iter().filter(|clients| clients.rejected_by().is_none()).collect();
    if admitted.is_empty() {
        return report_closed(&all, diagnostics);
    }
    for clients in &all {
        let others = || admitted.iter().any(|other| other.name() == clients.name());
        // Clients without a certificate, where one is optional, may well be rejected.
        let is_odd = match clients.proof {
            Proof::RawKey(_) | Proof::Psk(_) => clients.name().is_none() || !others(),
            Proof::Certificate | Proof::None => clients.name().is_some() && !others(),
        };
        if let Some((expression, root)) = clients.rejected_by().filter(|_| is_odd) {
            let complaint = Complaint::new(clients.rejection(root));
            diagnostics.warning(expression, complaint.hint("test with has(), or compare `auth.kind`"));
        }
    }
    report_unauthenticated(listener, &admitted, diagnostics);
    report_unbound_client_id(listener, settings, &admitted, diagnostics);
    report_unbound_username(listener, &admitted, diagnostics);
    report_signed_claims(listener, &admitted, diagnostics);
}

/// What clients prove in the handshake.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    None,
    Certificate,
    RawKey(Source),
    Psk(Source),
}

/// Where the gateway finds a key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    File,
    Registry,
}

/// A kind of clients.
struct Clients<'a> {
    listener: &'a Listener,
    hash_key: Option<&'a Setting<Expression>>,
    authenticator: Option<&'a Authenticator>,
    proof: Proof,
}

fn kinds_of<'a>(listener: &'a Listener, settings: &'a Settings) -> Vec<Clients<'a>> {
    let known = |name: &String| settings.authenticators.iter().find(|authenticator| authenticator.name == *name);
    let mut authenticators: Vec<Option<&Authenticator>> =
        listener.authenticate.iter().map(known).map(Some).map(Option::flatten).collect();
    if authenticators.is_empty() {
        authenticators.push(None);
    }
    let (proofs, hash_key) = (proofs_of(listener), hash_key_of(listener, settings));
    let clients =
        |authenticator| proofs.iter().map(move |proof| Clients { listener, hash_key, authenticator, proof: *proof });
    authenticators.into_iter().flat_map(clients).collect()
}

fn proofs_of(listener: &Listener) -> Vec<Proof> {
    match listener.tls.as_ref().map(|tls| &tls.mode) {
        None => vec![Proof::None],
        Some(TlsMode::Psk(psk)) => sources(psk.file.is_some(), psk.registry).map(Proof::Psk).collect(),
        Some(TlsMode::Certificate(tls)) => {
            let mut proofs = Vec::new();
            proofs.extend(tls.client.as_ref().map(|_| Proof::Certificate));
            let keys = tls.raw_keys.iter().flat_map(|keys| sources(keys.file.is_some(), keys.registry));
            proofs.extend(keys.map(Proof::RawKey));
            if tls.client.as_ref().map_or(tls.raw_keys.is_none(), |client| !client.required) {
                proofs.push(Proof::None);
            }
            proofs
        }
    }
}

fn sources(file: bool, registry: bool) -> impl Iterator<Item = Source> {
    file.then_some(Source::File).into_iter().chain(registry.then_some(Source::Registry))
}

impl<'a> Clients<'a> {
    /// The name of the authenticator.
    fn name(&self) -> Option<&'a str> {
        self.authenticator.map(|authenticator| authenticator.name.as_str())
    }

    fn method(&self) -> Option<&'a Method> {
        self.authenticator.map(|authenticator| &authenticator.method)
    }

    fn has_root(&self, root: &str) -> bool {
        match root {
            "cert" => self.proof == Proof::Certificate,
            "jwt" => matches!(self.method(), Some(Method::Jwt(_))),
            "http" => matches!(self.method(), Some(Method::Http(_))),
            "device" => {
                matches!(self.proof, Proof::RawKey(Source::Registry) | Proof::Psk(Source::Registry))
                    || matches!(self.method(), Some(Method::Registry(_)))
            }
            "auth" => self.authenticator.is_some(),
            "proxy" => self.listener.proxy_protocol.is_some(),
            _ => true,
        }
    }

    fn is_proved(&self, path: &str) -> bool {
        match root_of(path) {
            "cert" | "jwt" | "http" | "device" => self.has_root(root_of(path)),
            "tls" if path == "tls.psk_identity" => matches!(self.proof, Proof::Psk(_)),
            "tls" => {
                matches!(self.proof, Proof::RawKey(_)) && FACTS.iter().any(|fact| fact.path == path && fact.proved)
            }
            "proxy" => path.starts_with(PROXY_SSL) && trusts_balancer(self.listener),
            // Passwords prove user names; a service is given both.
            "mqtt" => path == USERNAME && matches!(self.method(), Some(Method::PasswordFile(_) | Method::Http(_))),
            _ => false,
        }
    }

    /// Calls `test` with what expressions can know of these clients. `bound`: facts that `require` binds.
    fn with<T>(&self, bound: &[&str], test: impl FnOnce(&ClientKind<'_>) -> T) -> T {
        self.with_certificate(trusts_balancer(self.listener), bound, test)
    }

    /// The same for those with a certificate that a load balancer has looked at, or without.
    fn with_certificate<T>(&self, at_balancer: bool, bound: &[&str], test: impl FnOnce(&ClientKind<'_>) -> T) -> T {
        let (has_root, is_proved) =
            (|root: &str| self.has_root(root), |path: &str| bound.contains(&path) || self.is_proved(path));
        let has_fact = |path: &str| match path {
            "tls.psk_identity" => matches!(self.proof, Proof::Psk(_)),
            "tls.key_name" => self.proof == Proof::RawKey(Source::File),
            "tls.key_fingerprint" => matches!(self.proof, Proof::RawKey(_)),
            _ if path.starts_with(PROXY_SSL) => at_balancer,
            "conn.path" | "conn.origin" | "conn.headers" => self.listener.protocol.is_websocket(),
            _ => root_of(path) != "tls" || self.listener.tls.is_some(),
        };
        let kind = |authenticator: &'a Authenticator| (authenticator.name.as_str(), authenticator.method.kind());
        test(&ClientKind {
            has_root: &has_root,
            has_fact: &has_fact,
            is_proved: &is_proved,
            authenticator: self.authenticator.map(kind),
        })
    }

    /// The first expression that rejects all these clients, and the root that they lack, if that is the reason.
    fn rejected_by(&self) -> Option<(&'a Setting<Expression>, Option<&'static str>)> {
        self.with(&[], |client| {
            let rejects = |expression: &&Setting<Expression>| expression.value.rejects_all(client);
            let expression = expressions_of(self.listener, self.hash_key).into_iter().find(rejects)?;
            Some((expression, expression.value.lacks(client)))
        })
    }

    /// The facts chosen by the client that `require` binds to something proved.
    fn bound(&self) -> Vec<&'static str> {
        let mut bound = Vec::new();
        // Twice: a client ID may be bound to a user name, and that to a certificate.
        for field in [USERNAME, CLIENT_ID, USERNAME] {
            let binds =
                |expression: &Setting<Expression>| self.with(&bound, |client| expression.value.binds(field, client));
            if self.listener.require.iter().any(binds) {
                bound.push(field);
            }
        }
        bound
    }

    /// Describes that an expression rejects these clients, because they lack `root`.
    fn rejection(&self, root: Option<&str>) -> String {
        let who = match (self.name(), self.proof) {
            (Some(name), _) => format!("clients of the authenticator `{name}`"),
            (None, Proof::RawKey(_)) => "clients with a raw public key".to_owned(),
            (None, Proof::Psk(_)) => "clients with a pre-shared key".to_owned(),
            (None, Proof::Certificate) => "clients with a certificate".to_owned(),
            (None, Proof::None) => "clients without a certificate".to_owned(),
        };
        match root {
            Some(root) => format!("{who} have no `{root}`, so this rejects them"),
            None => format!("this rejects all {who}"),
        }
    }

    fn is_authenticated(&self) -> bool {
        self.proof != Proof::None || self.authenticator.is_some() || self.needs_certificate_at_balancer()
    }

    /// Whether `require` rejects clients without a certificate that a load balancer has verified.
    fn needs_certificate_at_balancer(&self) -> bool {
        let rejects =
            |rule: &Setting<Expression>| self.with_certificate(false, &[], |client| rule.value.rejects_all(client));
        trusts_balancer(self.listener) && self.listener.require.iter().any(rejects)
    }
}

/// Facts of a certificate that a load balancer has verified.
const PROXY_SSL: &str = "proxy.ssl.";

/// Whether what a load balancer says of the client's certificate counts.
fn trusts_balancer(listener: &Listener) -> bool {
    listener.proxy_protocol.as_ref().is_some_and(|proxy| proxy.certificate)
}

/// All expressions that every client has to pass. `hash_key`: that of the upstream.
pub(super) fn expressions_of<'a>(
    listener: &'a Listener,
    hash_key: Option<&'a Setting<Expression>>,
) -> Vec<&'a Setting<Expression>> {
    let connect = &listener.connect;
    let password: Vec<_> = match &connect.password {
        Some(Password::Expression(expression)) => vec![expression],
        Some(Password::Token(token)) => token.claims.iter().map(|(_, claim)| claim).collect(),
        None => Vec::new(),
    };
    listener.require.iter().chain(&connect.client_id).chain(&connect.username).chain(password).chain(hash_key).collect()
}

pub(super) fn hash_key_of<'a>(listener: &Listener, settings: &'a Settings) -> Option<&'a Setting<Expression>> {
    settings.upstreams.iter().find(|upstream| upstream.name == listener.upstream)?.hash_key.as_ref()
}

/// Reports comparisons with the name of an authenticator or listener that does not exist. One that another listener has may
/// be meant: listeners may share their rules.
fn report_unknown_names(
    listener: &Listener,
    settings: &Settings,
    diagnostics: &mut Diagnostics,
) -> Result<(), Reported> {
    let expressions = expressions_of(listener, hash_key_of(listener, settings));
    expressions
        .into_iter()
        .try_for_each(|expression| report_unknown_name(&expression.value, expression, settings, diagnostics))
}

/// Reports that an expression, found at `at`, compares with such a name.
pub(super) fn report_unknown_name(
    expression: &Expression,
    at: &impl Located,
    settings: &Settings,
    diagnostics: &mut Diagnostics,
) -> Result<(), Reported> {
    let authenticators: Vec<&str> = settings.authenticators.iter().map(|it| it.name.as_str()).collect();
    let listeners: Vec<&str> = settings.listeners.iter().map(|it| it.name.as_str()).collect();
    for (fact, kind, known) in
        [("auth.name", "authenticator", &authenticators), ("conn.listener", "listener", &listeners)]
    {
        let names = expression.compared_with(fact);
        if let Some(name) = names.iter().find(|name| !known.contains(&name.as_str())) {
            let complaint = Complaint::new(format!("there is no {kind} `{}`", name.escape_debug()));
            let hint = match suggest(name, known.iter().copied()) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("`{fact}` is the `name` of an [[{kind}]]"),
            };
            return Err(diagnostics.error(at, complaint.hint(hint)));
        }
    }
    Ok(())
}

/// Reports comparisons with a value that a fact never has.
fn report_impossible_values(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    for expression in expressions_of(listener, hash_key_of(listener, settings)) {
        report_impossible_value(&expression.value, expression, diagnostics);
    }
}

/// Reports that an expression, found at `at`, compares with such a value.
pub(super) fn report_impossible_value(expression: &Expression, at: &impl Located, diagnostics: &mut Diagnostics) {
    if let Some((fact, value, expected)) = expression.impossible() {
        let complaint = Complaint::new(format!("`{fact}` is never `{}`", value.escape_debug()));
        diagnostics.warning(at, complaint.hint(format!("it is {expected}")));
    }
}

/// The fact that an expression needs and no client of the listener has.
pub(super) fn lacked_by_all(expression: &Expression, listener: &Listener, settings: &Settings) -> Option<&'static str> {
    let mut lacked = kinds_of(listener, settings).into_iter().map(|kind| kind.with(&[], |it| expression.lacks(it)));
    let first = lacked.next()??;
    lacked.all(|other| other.is_some()).then_some(first)
}

/// A name in the expression that authenticated clients of the listener choose, and did not prove. The client ID, for which
/// there is a warning of its own, is none.
pub(super) fn proves_nothing_of(
    expression: &Expression,
    listener: &Listener,
    settings: &Settings,
) -> Option<&'static str> {
    let admitted = kinds_of(listener, settings).into_iter().filter(|clients| clients.rejected_by().is_none());
    let chosen = |clients: Clients<'_>| {
        let bound = clients.bound();
        // What rules see is the replacement.
        let is_replaced =
            |username: &Setting<Expression>| clients.with(&bound, |client| username.value.chosen(client).is_none());
        let is_proved = listener.connect.username.as_ref().is_some_and(is_replaced);
        let chosen = clients.with(&bound, |client| expression.chosen(client))?;
        (chosen == USERNAME && !is_proved && clients.is_authenticated()).then_some(chosen)
    };
    admitted.into_iter().find_map(chosen)
}

/// Reports conditions of `require` that no client fulfils together.
fn report_contradictions(listener: &Listener, diagnostics: &mut Diagnostics) -> Result<(), Reported> {
    for (index, one) in listener.require.iter().enumerate() {
        if let Some(other) = listener.require[..=index].iter().find(|other| other.value.contradicts(&one.value)) {
            let what = if std::ptr::eq(other, one) { "itself".to_owned() } else { format!("`{}`", other.value) };
            let complaint = Complaint::new(format!("this contradicts {what}, so all clients are rejected"));
            let hint = "all conditions of `require` have to be true; write alternatives with ||";
            return Err(diagnostics.error(one, complaint.hint(hint)));
        }
    }
    Ok(())
}

/// Reports a listener that lets nobody in.
fn report_closed(all: &[Clients<'_>], diagnostics: &mut Diagnostics) {
    let reasons: Vec<_> = all.iter().filter_map(Clients::rejected_by).collect();
    let Some((expression, root)) = reasons.first().copied() else { return };
    let listener = all.first().map(|clients| clients.listener);
    if reasons.iter().any(|(_, other)| *other != root) {
        // Each kind of clients for a reason of its own.
        let mut seen = Vec::new();
        for clients in all {
            let Some((expression, root)) = clients.rejected_by() else { continue };
            let message = clients.rejection(root);
            if !seen.contains(&message) {
                let hint = "so no client can connect; test with has(), or compare `auth.kind`";
                diagnostics.error(expression, Complaint::new(message.clone()).hint(hint));
                seen.push(message);
            }
        }
        return;
    }
    match root {
        Some(root) => {
            let complaint = Complaint::new(format!("no client of this listener has `{root}`, so all are rejected"));
            let of_balancer = root == "cert" && listener.is_some_and(trusts_balancer);
            let hint =
                if of_balancer { "what a load balancer has verified is `proxy.ssl.cn`" } else { how_to_have(root) };
            diagnostics.error(expression, complaint.hint(hint));
        }
        None => diagnostics.warning(expression, "this expression rejects all clients of the listener"),
    }
}

fn report_unauthenticated(listener: &Listener, admitted: &[&Clients<'_>], diagnostics: &mut Diagnostics) {
    let open: Vec<_> = admitted.iter().filter(|clients| !clients.is_authenticated()).collect();
    // Programs on this machine are told apart by nothing anyway.
    let is_local = (!listener.allow.is_empty() && listener.allow.iter().all(Origin::is_local))
        || listener.bind.iter().all(|bind| matches!(bind, Bind::Unix(_)));
    if open.is_empty() || is_local {
        return;
    }
    if open.len() == admitted.len() {
        let complaint = Complaint::new("this listener does not authenticate clients");
        let hint = if trusts_balancer(listener) {
            "[listener.admit] require = [\"proxy.ssl.verified\"], or set `authenticate`"
        } else {
            "set `client_ca` in [listener.tls], or `authenticate`"
        };
        diagnostics.warning(&listener.table, complaint.hint(hint));
    } else {
        let message = "client certificates are optional, and clients without one are not authenticated";
        let hint = "set `authenticate`, or require a fact that only clients with a certificate have";
        diagnostics.warning(&listener.table, Complaint::new(message).hint(hint));
    }
}

fn report_unbound_client_id(
    listener: &Listener,
    settings: &Settings,
    admitted: &[&Clients<'_>],
    diagnostics: &mut Diagnostics,
) {
    let is_bound = |clients: &Clients<'_>| {
        let bound = clients.bound();
        // The broker sees the replacement alone.
        match &listener.connect.client_id {
            Some(replacement) => clients.with(&bound, |client| replacement.value.is_of_proved(client)),
            None => bound.contains(&CLIENT_ID),
        }
    };
    let unbound: Vec<_> = admitted.iter().filter(|clients| !is_bound(clients)).collect();
    if let Some(rule) = listener.bans.iter().find(|rule| rule.key == BanKey::ClientId)
        && !unbound.is_empty()
    {
        let message = "any client can get another one banned: nothing binds the client ID to what the client proved";
        diagnostics.warning(&rule.table, Complaint::new(message).hint("key = \"address\", or bind the client ID"));
    }
    let unbound: Vec<_> = unbound.into_iter().filter(|clients| clients.is_authenticated()).collect();
    let Some(first) = unbound.first() else { return };
    let what = match (first.authenticator, first.proof) {
        (Some(_), _) => "user, token or device",
        (None, Proof::Certificate | Proof::None) => "certificate",
        (None, _) => "key",
    };
    let mut message =
        format!("any device can use any other device's client ID: nothing binds the client ID to the {what}");
    if let Some(name) = first.name().filter(|_| unbound.len() < admitted.len()) {
        message += &format!(", for clients of `{name}`");
    }
    let hint = match authenticated_names(listener, settings).as_slice() {
        [name] => format!("[listener.admit] require = ['{CLIENT_ID} == {name}']"),
        names => {
            format!("[listener.admit] require: compare {CLIENT_ID} with an authenticated name: {}", names.join(", "))
        }
    };
    diagnostics.warning(&listener.table, Complaint::new(message).hint(hint));
}

/// Warns if clients of an authenticator that proves a name may send another user name.
fn report_unbound_username(listener: &Listener, admitted: &[&Clients<'_>], diagnostics: &mut Diagnostics) {
    let proved = |clients: &&&Clients<'_>| match clients.method() {
        Some(Method::Jwt(_)) => Some("jwt.sub"),
        Some(Method::Registry(_)) => Some("device.id"),
        Some(Method::PasswordFile(_) | Method::Http(_)) | None => None,
    };
    let is_bound = |clients: &Clients<'_>| {
        let bound = clients.bound();
        let is_replaced =
            |username: &Setting<Expression>| clients.with(&bound, |client| username.value.chosen(client).is_none());
        listener.connect.username.as_ref().map_or_else(|| bound.contains(&USERNAME), is_replaced)
    };
    let mut names: Vec<&str> =
        admitted.iter().filter(|clients| !is_bound(clients)).collect::<Vec<_>>().iter().filter_map(proved).collect();
    names.dedup();
    if names.is_empty() {
        return;
    }
    let message = "a client may send the broker any user name: its token or key does not bind the user name";
    // With several authenticators, each has its own name.
    let username = match (names.as_slice(), listener.authenticate.len()) {
        ([name], 1) => (*name).to_owned(),
        _ => "auth.kind == \"jwt\" ? jwt.sub : auth.kind == \"registry\" ? device.id : mqtt.username".to_owned(),
    };
    let hint = format!("[listener.connect] username = '{username}'");
    diagnostics.warning(&listener.table, Complaint::new(message).hint(hint));
}

/// Warns of signed claims that a client can choose.
fn report_signed_claims(listener: &Listener, admitted: &[&Clients<'_>], diagnostics: &mut Diagnostics) {
    let Some(Password::Token(token)) = &listener.connect.password else { return };
    for (name, claim) in &token.claims {
        let chosen =
            admitted.iter().find_map(|clients| clients.with(&clients.bound(), |client| claim.value.chosen(client)));
        if let Some(fact) = chosen {
            let message = format!(
                "the gateway would sign `{fact}` as `{name}`, and nothing binds that to what the client proved"
            );
            let hint = format!("[listener.admit] require: compare {fact} with an authenticated name");
            diagnostics.warning(claim, Complaint::new(message).hint(hint).hide_line());
        }
    }
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
    names.extend(trusts_balancer(listener).then_some("proxy.ssl.cn"));
    // A user name that a password proves matters only if nothing else identifies the client.
    if names.len() > 1 {
        names.retain(|name| *name != "mqtt.username");
    }
    names.sort_unstable();
    names.dedup();
    names
}

/// How clients come to have a fact.
pub(super) fn how_to_have(root: &str) -> &'static str {
    match root {
        "cert" => "clients have a certificate if [listener.tls] has `client_ca`",
        "jwt" => "clients have a token if `authenticate` names an authenticator of the kind `jwt`",
        "http" => "clients have attributes if `authenticate` names an authenticator of the kind `http`",
        "device" => "clients are devices if `authenticate` names an authenticator of the kind `registry`",
        "tls.psk_identity" => "clients have a pre-shared key if there is [listener.tls.psk]",
        "tls.key_name" | "tls.key_fingerprint" => "clients have raw public keys if there is [listener.tls.raw_keys]",
        "conn.path" | "conn.origin" | "conn.headers" => "clients send requests with `protocol = \"ws\"` or \"wss\"",
        "proxy" => "load balancers say it if the listener has `proxy_protocol`",
        fact if fact.starts_with(PROXY_SSL) => "load balancers say it if `proxy_protocol` has `certificate = true`",
        fact if root_of(fact) == "tls" => "protocol = \"tls\"",
        _ => "set `authenticate`",
    }
}
