//! Admission and rewriting of CONNECT. Enters: the packet as the client sent it, and what is known of the client.
//! Leaves: the packet as the broker gets it, or a refusal. A pure function: no I/O, no state.

use std::sync::Arc;

use portcullis_wire::Connect;

use crate::config::{At, Document, model};
use crate::expr::{Expression, Facts, Wanted};
use crate::outcome::Reject;

/// `admit.require`: expressions that must all be true.
#[derive(Debug, Default)]
pub struct Admission {
    require: Vec<Expression>,
}

/// `connect`: the fields that are replaced.
#[derive(Debug, Default)]
pub struct Rewriting {
    client_id: Option<Expression>,
    username: Option<Expression>,
    password: Option<Expression>,
}

/// The new values of fields, to be put into a CONNECT. Not to be printed: one is a password.
#[derive(Default)]
#[expect(missing_debug_implementations, reason = "it holds a password")]
pub struct Replacements {
    client_id: Option<Arc<String>>,
    username: Option<Arc<String>>,
    password: Option<Arc<String>>,
}

impl Admission {
    pub(crate) fn compile(admit: &model::Admit, document: &mut Document) -> Self {
        let compile = |source| compile(Some(source), Wanted::Bool, document);
        Self { require: admit.require.iter().filter_map(compile).collect() }
    }

    /// Whether the client is let in.
    ///
    /// # Errors
    /// [`Reject::IdentityMismatch`] if an expression is false, [`Reject::ExpressionFailed`] if it has no value.
    pub fn check(&self, facts: &Facts<'_>) -> Result<(), Reject> {
        for expression in &self.require {
            if !expression.is_true(facts)? {
                tracing::debug!(?expression, "not true of this client");
                return Err(Reject::IdentityMismatch);
            }
        }
        Ok(())
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.require.is_empty()
    }
}

impl Rewriting {
    pub(crate) fn compile(connect: &model::Connect, document: &mut Document) -> Self {
        let mut field = |source: &Option<At<String>>| compile(source.as_ref(), Wanted::String, document);
        Self {
            client_id: field(&connect.client_id),
            username: field(&connect.username),
            password: field(&connect.password).map(|password| password.known_as("connect.password")),
        }
    }

    /// Whether CONNECT goes on as it came.
    pub const fn is_empty(&self) -> bool {
        self.client_id.is_none() && self.username.is_none() && self.password.is_none()
    }

    /// Computes the new values; all of them from the CONNECT that the client sent.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`] if one has no value.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Result<Replacements, Reject> {
        let value = |field: &Option<Expression>| field.as_ref().map(|field| field.text(facts)).transpose();
        Ok(Replacements {
            client_id: value(&self.client_id)?,
            username: value(&self.username)?,
            password: value(&self.password)?,
        })
    }
}

impl Replacements {
    /// The CONNECT with the new values in it.
    pub fn apply<'a>(&'a self, connect: &Connect<'a>) -> Connect<'a> {
        let text = |value: &'a Option<Arc<String>>| value.as_ref().map(|value| value.as_str());
        Connect {
            client_id: text(&self.client_id).unwrap_or(connect.client_id),
            username: text(&self.username).or(connect.username),
            password: text(&self.password).map(str::as_bytes).or(connect.password),
            ..*connect
        }
    }
}

/// Compiles an expression; says what is wrong with it in the document's problems.
pub(crate) fn compile(source: Option<&At<String>>, wanted: Wanted, document: &mut Document) -> Option<Expression> {
    let source = source?;
    if document.is_substituted(&source.span) {
        // It would be code, and both the code and what is wrong with it are shown.
        let problem =
            document.problems.error(&source.span, "nothing from outside the file can be put into an expression");
        problem.hint("`${ENV:...}` and `${FILE:...}` are for values that are no expressions");
        return None;
    }
    match Expression::compile(source, wanted) {
        Ok(expression) => Some(expression),
        Err(errors) => {
            for error in errors {
                let span = document.problems.inside(&source.span, source, error.span);
                document.problems.error(&span, error.message).hint = error.hint;
            }
            None
        }
    }
}
