//! How the command reports failures: `error: ...`, `caused by: ...` and `hint: ...` on standard error, and an exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use portcullis_gateway::config::{Diagnostics, Severity};

use crate::output::complain;

/// The exit code for a configuration with errors: `EX_CONFIG` of sysexits.h.
const EXIT_CONFIGURATION: u8 = 78;

/// Why a command failed.
pub(crate) enum Failure {
    /// An error, and what to do about it.
    Error(anyhow::Error, Option<String>),
    /// The configuration has errors.
    Configuration(Box<Diagnostics>),
}

impl Failure {
    /// A failure with a hint.
    pub(crate) fn hint(error: impl Into<anyhow::Error>, hint: impl Into<String>) -> Self {
        Self::Error(error.into(), Some(hint.into()))
    }

    /// Prints the failure on standard error and returns the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        match self {
            Failure::Error(error, hint) => {
                complain!("error: {error}");
                error.chain().skip(1).for_each(|cause| complain!("caused by: {cause}"));
                if let Some(hint) = hint {
                    complain!("hint: {hint}");
                }
                ExitCode::FAILURE
            }
            Failure::Configuration(problems) => {
                print_problems(problems);
                ExitCode::from(EXIT_CONFIGURATION)
            }
        }
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Error(error.into(), None)
    }
}

/// Prints the problems and their number on standard error; prints nothing if there are none.
pub(crate) fn print_problems(problems: &Diagnostics) {
    if problems.list().is_empty() {
        return;
    }
    complain!("{}\n", problems.render(std::io::stderr().is_terminal()));
    let count = |severity, one: &str| match problems.count(severity) {
        0 => None,
        1 => Some(format!("1 {one}")),
        n => Some(format!("{n} {one}s")),
    };
    let counts: Vec<String> =
        [count(Severity::Error, "error"), count(Severity::Warning, "warning")].into_iter().flatten().collect();
    complain!("{}: {}", problems.path().display(), counts.join(", "));
}
