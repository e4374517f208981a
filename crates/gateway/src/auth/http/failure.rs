//! How a request to an authentication service failed. The circuit breaker, bans and metrics tell the kinds apart.

use hyper::StatusCode;

use crate::fetch::FetchProblem;

/// How a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// The connection was refused.
    Unreachable,
    /// The gateway lacks what it needs to connect.
    OwnShortage,
    /// There was no response in time.
    Timeout,
    /// The service said that it is overloaded: 429 or 503.
    Overload,
    /// A 4xx status: the service does not like the request.
    Rejected,
    /// Another status, or a response that does not follow the protocol.
    Error,
}

impl From<FetchProblem> for Failure {
    fn from(problem: FetchProblem) -> Self {
        match problem {
            FetchProblem::Unreachable => Self::Unreachable,
            FetchProblem::OwnShortage => Self::OwnShortage,
            FetchProblem::Timeout => Self::Timeout,
            FetchProblem::Response => Self::Error,
        }
    }
}

impl Failure {
    /// A response with this status that is no decision.
    pub(super) fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => Self::Overload,
            status if status.is_client_error() => Self::Rejected,
            _ => Self::Error,
        }
    }

    /// Whether the client may have caused it by what it sent. Such failures may count towards bans.
    pub(super) const fn may_be_of_client(self) -> bool {
        matches!(self, Self::Rejected | Self::Error)
    }

    /// The label in metrics.
    pub(super) const fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::OwnShortage => "exhausted",
            Self::Timeout => "timeout",
            Self::Overload => "overload",
            Self::Rejected => "rejected",
            Self::Error => "error",
        }
    }
}
