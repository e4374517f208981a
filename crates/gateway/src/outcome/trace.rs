//! What is learned about a connection while it is decided whether to serve it: for the log, once it has ended. The modules
//! that decide know nothing of connections, and their errors are only reasons; they note the rest here. Notes go to the
//! connection whose task is running, and nowhere outside of one.

use std::cell::RefCell;

use crate::util::clip::clip;

/// What was noted. All text is cut to what logs show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    /// Why the connection was rejected, in more detail than its reason. Never a secret.
    pub detail: Option<Box<str>>,
    /// The subject of the certificate that the client presented, verified or not.
    pub cert_subject: Option<Box<str>>,
    /// Its serial number.
    pub cert_serial: Option<Box<str>>,
    /// The identity of the pre-shared key, or the fingerprint of the public key, that the client presented, known or not.
    pub tls_identity: Option<Box<str>>,
    /// The authenticator that rejected the client.
    pub authenticator: Option<Box<str>>,
}

tokio::task_local! {
    static TRACE: RefCell<Trace>;
}

/// Runs a future, and returns what was noted meanwhile.
pub async fn traced<T>(future: impl Future<Output = T>) -> (T, Trace) {
    let traced = async {
        let result = future.await;
        (result, TRACE.with(RefCell::take))
    };
    TRACE.scope(RefCell::default(), traced).await
}

/// As [`traced`], for what does not wait, and runs in no connection's task.
pub(crate) fn traced_now<T>(evaluate: impl FnOnce() -> T) -> (T, Trace) {
    TRACE.sync_scope(RefCell::default(), || {
        let result = evaluate();
        (result, TRACE.with(RefCell::take))
    })
}

/// What was noted so far about the connection whose task is running.
pub(crate) fn noted() -> Trace {
    TRACE.try_with(|trace| trace.borrow().clone()).unwrap_or_default()
}

/// Notes why the client is rejected.
pub(crate) fn note_detail(detail: &str) {
    note(|trace| trace.detail = Some(clip(detail).into()));
}

/// Notes the certificate that the client presented.
pub(crate) fn note_certificate(subject: Option<&str>, serial: &str) {
    note(|trace| {
        trace.cert_subject = subject.map(|subject| clip(subject).into());
        trace.cert_serial = Some(clip(serial).into());
    });
}

/// Notes the identity of the pre-shared key, or the fingerprint of the public key, that the client presented.
pub(crate) fn note_key(identity: &str) {
    note(|trace| trace.tls_identity = Some(clip(identity).into()));
}

/// Notes which authenticator rejects the client.
pub(crate) fn note_authenticator(name: &str) {
    note(|trace| trace.authenticator = Some(name.into()));
}

fn note(change: impl FnOnce(&mut Trace)) {
    // An error: no connection's task is running.
    let _ = TRACE.try_with(|trace| change(&mut trace.borrow_mut()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn notes_go_to_the_connection_whose_task_is_running() {
        note_detail("nobody");
        let connection = |detail: &'static str| {
            traced(async move {
                tokio::task::yield_now().await;
                note_detail(detail);
                tokio::task::yield_now().await;
                detail
            })
        };
        let (one, two) = tokio::join!(connection("one"), connection("two"));
        for (detail, trace) in [one, two] {
            assert_eq!(trace, Trace { detail: Some(detail.into()), ..Trace::default() });
        }
    }
}
