//! Admission and rewriting of CONNECT. Enters: the packet as the client sent it, and the facts about the client.
//! Leaves: the packet as the broker receives it, or a rejection. Not here: I/O or state.

use std::sync::Arc;

use portcullis_wire::Connect;

use super::token::Signer;
use crate::config::Setting;
use crate::config::tables::{self, Password};
use crate::expr::Expression;
use crate::outcome::{Reject, note_detail};
use crate::peer::Facts;

/// `admit.require`: expressions that must all be true.
#[derive(Debug, Default)]
pub(crate) struct Admission {
    require: Vec<Expression>,
}

/// `connect`: the fields that are replaced.
#[derive(Debug, Default)]
pub(crate) struct Rewriting {
    client_id: Option<Expression>,
    username: Option<Expression>,
    password: Option<NewPassword>,
}

#[derive(Debug)]
enum NewPassword {
    Expression(Expression),
    Token(Token),
}

/// A token for the broker.
#[derive(Debug)]
struct Token {
    signer: Arc<Signer>,
    token: tables::Token,
}

/// New values for fields of a CONNECT. Do not log them: one is a password.
#[derive(Default)]
pub(crate) struct Replacements {
    client_id: Option<Arc<String>>,
    username: Option<Arc<String>>,
    password: Option<Arc<String>>,
}

impl Admission {
    /// Admits clients for which all expressions are true.
    pub(crate) fn new(require: Vec<Setting<Expression>>) -> Self {
        Self { require: require.into_iter().map(|expression| expression.value).collect() }
    }

    /// Checks that the client may be admitted.
    ///
    /// # Errors
    /// [`Reject::IdentityMismatch`]: an expression is false. [`Reject::ExpressionFailed`]: its evaluation failed.
    pub(crate) fn check(&self, facts: &Facts<'_>) -> Result<(), Reject> {
        for expression in &self.require {
            if !expression.is_true(facts)? {
                note_detail(&format!("`{expression}` is false"));
                return Err(Reject::IdentityMismatch);
            }
        }
        Ok(())
    }

    /// Whether an expression uses this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.require.iter().any(|expression| expression.uses(name))
    }
}

impl Rewriting {
    /// `signer` is what tokens are signed by; there is one if a token is configured.
    pub(crate) fn new(settings: tables::Connect, signer: Option<&Arc<Signer>>) -> Self {
        let tables::Connect { client_id, username, password } = settings;
        let password = password.and_then(|password| match password {
            Password::Expression(expression) => Some(NewPassword::Expression(expression.value)),
            Password::Token(token) => Some(NewPassword::Token(Token { signer: Arc::clone(signer?), token })),
        });
        Self { client_id: client_id.map(|it| it.value), username: username.map(|it| it.value), password }
    }

    /// Whether an expression uses this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        let fields = [&self.client_id, &self.username];
        fields.into_iter().flatten().any(|field| field.uses(name))
            || match &self.password {
                Some(NewPassword::Expression(password)) => password.uses(name),
                Some(NewPassword::Token(token)) => token.token.claims.iter().any(|(_, claim)| claim.uses(name)),
                None => false,
            }
    }

    /// Computes the new values, all from the CONNECT as the client sent it.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`]: an evaluation failed. [`Reject::RewriteFailed`]: the token cannot be signed.
    pub(crate) fn evaluate(&self, facts: &Facts<'_>) -> Result<Replacements, Reject> {
        let value = |field: &Option<Expression>| field.as_ref().map(|field| field.text(facts)).transpose();
        Ok(Replacements {
            client_id: value(&self.client_id)?,
            username: value(&self.username)?,
            password: match &self.password {
                Some(NewPassword::Expression(password)) => Some(password.text(facts)?),
                Some(NewPassword::Token(token)) => Some(Arc::new(token.make(facts)?)),
                None => None,
            },
        })
    }
}

impl Token {
    fn make(&self, facts: &Facts<'_>) -> Result<String, Reject> {
        let claim = |(name, expression): &(String, Setting<Expression>)| Ok((name.clone(), expression.json(facts)?));
        let claims = self.token.claims.iter().map(claim).collect::<Result<_, Reject>>()?;
        self.signer.sign(claims, self.token.audience.as_deref(), self.token.lifetime).map_err(|_| Reject::RewriteFailed)
    }
}

impl Replacements {
    /// Uses the values of an authenticator for fields that no expression replaces.
    #[must_use]
    pub(crate) fn or_else(self, client_id: Option<String>, username: Option<String>) -> Self {
        Self {
            client_id: self.client_id.or_else(|| client_id.map(Arc::new)),
            username: self.username.or_else(|| username.map(Arc::new)),
            password: self.password,
        }
    }

    /// Whether CONNECT stays unchanged.
    pub(crate) const fn is_empty(&self) -> bool {
        self.client_id.is_none() && self.username.is_none() && self.password.is_none()
    }

    /// The CONNECT with the new values.
    pub(crate) fn apply<'a>(&'a self, connect: &Connect<'a>) -> Connect<'a> {
        let text = |value: &'a Option<Arc<String>>| value.as_ref().map(|value| value.as_str());
        Connect {
            client_id: text(&self.client_id).unwrap_or(connect.client_id),
            username: text(&self.username).or(connect.username),
            password: text(&self.password).map(str::as_bytes).or(connect.password),
            ..*connect
        }
    }
}
