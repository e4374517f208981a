//! Why a connection ended. Two tables hold every reason: [`Reject`] for connections that did not become sessions, and
//! [`CloseReason`] for sessions. Each row has all properties of a reason: its label in logs and metrics, stage, blame
//! and status, the client's response, its meaning and a hint. Code elsewhere reads columns and never lists reasons.
//!
//! A row without all columns does not compile. The tables of `docs/access-log.md` are generated from these.

mod chain_error;
mod close_reason;
mod reject;
mod trace;

use portcullis_wire::{Disconnect, Refusal};

pub use chain_error::{ChainError, describe_webpki};
pub use close_reason::CloseReason;
pub use reject::Reject;
pub use trace::{Trace, traced};
pub(crate) use trace::{note_authenticator, note_certificate, note_detail, note_key, noted, traced_now};

/// What to do when the limit of open files is too low.
pub(crate) const RAISE_OPEN_FILES: &str = "raise the limit of open files: `LimitNOFILE=` of systemd, or `ulimit -n`";

/// The phase in which a connection ended, in the order of phases.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "self-explanatory names")]
pub enum Stage {
    Accept,
    Handshake,
    Connect,
    Admit,
    Upstream,
    Relay,
}

impl Stage {
    /// The label in the log.
    pub const fn label(self) -> &'static str {
        match self {
            Stage::Accept => "accept",
            Stage::Handshake => "handshake",
            Stage::Connect => "connect",
            Stage::Admit => "admit",
            Stage::Upstream => "upstream",
            Stage::Relay => "relay",
        }
    }
}

/// Who ended the connection, or caused its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "self-explanatory names")]
pub enum Blame {
    Client,
    Upstream,
    Gateway,
}

impl Blame {
    /// The label in the log.
    pub const fn label(self) -> &'static str {
        match self {
            Blame::Client => "client",
            Blame::Upstream => "upstream",
            Blame::Gateway => "gateway",
        }
    }
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was rejected before it became a session.
    Rejected(Reject),
    /// It became a session, which closed.
    Closed(CloseReason),
}

impl From<Reject> for Outcome {
    fn from(reject: Reject) -> Self {
        Outcome::Rejected(reject)
    }
}

impl From<CloseReason> for Outcome {
    fn from(reason: CloseReason) -> Self {
        Outcome::Closed(reason)
    }
}

impl Outcome {
    /// The CONNACK for a client that is not connected yet; `None`: the connection is closed without one.
    pub fn connack(self) -> Option<Refusal> {
        match self {
            Outcome::Rejected(reject) => reject.connack(),
            Outcome::Closed(reason) => {
                reason.disconnect().map(|disconnect| Refusal::of(disconnect).unwrap_or(Refusal::NotAuthorized))
            }
        }
    }
}

impl Outcome {
    /// The status code with which a WebSocket is closed [RFC 6455, 7.4.1].
    pub fn websocket_code(self) -> u16 {
        const NORMAL: u16 = 1000;
        const POLICY_VIOLATION: u16 = 1008;
        const TOO_LARGE: u16 = 1009;
        let disconnect = match self {
            Outcome::Rejected(Reject::ConnectTooLarge) => return TOO_LARGE,
            Outcome::Rejected(_) => return POLICY_VIOLATION,
            Outcome::Closed(reason) => reason.disconnect(),
        };
        match disconnect {
            None | Some(Disconnect::ServerShuttingDown) => NORMAL,
            Some(Disconnect::PacketTooLarge) => TOO_LARGE,
            Some(_) => POLICY_VIOLATION,
        }
    }
}

/// Defines a table of reasons. The header names the columns that only this table has. Each row starts with the columns
/// that both tables have. The doc comment of a row is its meaning.
macro_rules! reasons {
    (
        $(#[$doc:meta])*
        $type:ident { $($(#[$column_doc:meta])* $column:ident: $column_type:ty,)+ }
        $(
            $(#[doc = $meaning:literal])+
            $name:ident = $label:literal, $stage:ident, $blame:ident, $status:literal, $($key:ident: $value:expr),+;
        )+
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $type { $($(#[doc = $meaning])+ $name,)+ }

        struct Row {
            label: &'static str,
            stage: crate::outcome::Stage,
            blame: crate::outcome::Blame,
            status: u16,
            meaning: &'static str,
            $($column: $column_type,)+
        }

        impl $type {
            /// Every reason, in the order of the table.
            pub const ALL: &'static [$type] = &[$($type::$name,)+];

            const fn row(self) -> &'static Row {
                match self {
                    $($type::$name => &Row {
                        label: $label,
                        stage: crate::outcome::Stage::$stage,
                        blame: crate::outcome::Blame::$blame,
                        status: $status,
                        meaning: concat!($($meaning),+),
                        $($key: $value,)+
                    },)+
                }
            }

            /// The label in logs and metrics.
            pub const fn label(self) -> &'static str {
                self.row().label
            }

            /// The phase in which the connection ended.
            pub const fn stage(self) -> crate::outcome::Stage {
                self.row().stage
            }

            /// Who ended the connection, or caused its end.
            pub const fn blame(self) -> crate::outcome::Blame {
                self.row().blame
            }

            /// The status in the access log, numbered as in NGINX.
            pub const fn status(self) -> u16 {
                self.row().status
            }

            /// What happened, as full sentences for the documentation.
            pub const fn meaning(self) -> &'static str {
                self.row().meaning.trim_ascii_start()
            }

            $($(#[$column_doc])* pub const fn $column(self) -> $column_type { self.row().$column })+
        }
    };
}
use reasons;

macro_rules! of_either {
    ($($(#[$doc:meta])* $name:ident -> $type:ty;)+) => {
        impl Outcome {
            $($(#[$doc])* pub const fn $name(self) -> $type {
                match self {
                    Outcome::Rejected(reject) => reject.$name(),
                    Outcome::Closed(reason) => reason.$name(),
                }
            })+
        }
    };
}

of_either! {
    /// The label in logs and metrics.
    label -> &'static str;
    /// The phase in which the connection ended.
    stage -> Stage;
    /// Who ended the connection, or caused its end.
    blame -> Blame;
    /// The status in the access log.
    status -> u16;
    /// What an operator can do.
    hint -> Option<&'static str>;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> impl Iterator<Item = Outcome> {
        let rejects = Reject::ALL.iter().map(|reject| Outcome::Rejected(*reject));
        rejects.chain(CloseReason::ALL.iter().map(|reason| Outcome::Closed(*reason)))
    }

    #[test]
    fn labels_are_lower_case_words_and_unique_in_their_table() {
        let mut seen = std::collections::HashSet::new();
        for outcome in all() {
            let label = outcome.label();
            assert!(label.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{label}");
            // What is the same before and after CONNECT has the same label; its stage differs.
            assert!(seen.insert((label, outcome.stage() == Stage::Relay)), "{label} twice");
        }
    }

    #[test]
    fn hints_fit_into_a_log_line() {
        for (label, hint) in all().filter_map(|outcome| Some((outcome.label(), outcome.hint()?))) {
            assert!(!hint.contains("  ") && !hint.contains('\n') && !hint.ends_with('.'), "{label}: {hint}");
        }
    }

    #[test]
    fn clients_learn_nothing_of_why_they_could_not_prove_who_they_are() {
        use portcullis_wire::Refusal;
        // A failed handshake ends before CONNACK.
        let failed = Reject::ALL.iter().filter(|reject| reject.is_failed_proof() && reject.stage() == Stage::Admit);
        for reject in failed {
            let expected = match reject {
                Reject::IdentityMismatch | Reject::ExpressionFailed => Refusal::NotAuthorized,
                // As to clients of which the gateway cannot say whether they exist.
                Reject::CredentialUnconfirmed | Reject::AuthenticationError => Refusal::ServerUnavailable,
                _ => Refusal::BadCredentials,
            };
            assert_eq!(reject.connack(), Some(expected), "{reject:?}");
        }
    }
}
