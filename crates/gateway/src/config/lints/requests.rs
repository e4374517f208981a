//! What authenticators and expressions read of requests for WebSocket, and is not there.

use super::super::diagnostics::{Complaint, Diagnostics};
use super::super::tables::{Authenticator, Listener, Method, Settings, TokenField};
use super::clients::{expressions_of, hash_key_of};

/// The fact with the headers of a request.
const HEADERS: &str = "conn.headers";

pub(super) fn run(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    report_unread_requests(listener, settings, diagnostics);
    report_unknown_headers(listener, settings, diagnostics);
}

/// Reports authenticators that read requests for WebSocket, on a listener that has none.
fn report_unread_requests(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    let reads = |authenticator: &&Authenticator| matches!(&authenticator.method, Method::Jwt(jwt) if matches!(jwt.field, TokenField::Header | TokenField::Cookie));
    let mut used = settings.authenticators.iter().filter(|it| listener.authenticate.contains(&it.name));
    if let Some(authenticator) = used.find(reads).filter(|_| !listener.protocol.is_websocket()) {
        let complaint = Complaint::new(format!("no client of this listener has a token for `{}`", authenticator.name));
        let hint = "headers and cookies come with WebSocket: protocol = \"wss\", or field = \"password\"";
        diagnostics.error(&listener.table, complaint.hint(hint));
    }
}

/// Reports headers in expressions that the listener does not read. A missing one is an error of the expression, which rejects all.
fn report_unknown_headers(listener: &Listener, settings: &Settings, diagnostics: &mut Diagnostics) {
    let Some(websocket) = &listener.websocket else { return };
    for expression in expressions_of(listener, hash_key_of(listener, settings)) {
        for name in expression.value.members_of(HEADERS).iter().filter(|name| !websocket.headers.contains(name)) {
            let complaint = Complaint::new(format!("the listener does not read the header `{name}`"));
            let lower = name.to_ascii_lowercase();
            let hint = if websocket.headers.contains(&lower) {
                format!("names are in lower case: conn.headers[\"{lower}\"]")
            } else {
                format!("headers = [\"{lower}\"] in [listener.websocket]")
            };
            diagnostics.error(expression, complaint.hint(hint));
        }
    }
}
