//! Admission and rewriting of CONNECT. Enters: the packet as the client sent it, and what is known of the client.
//! Leaves: the packet as the broker gets it, or a refusal. A pure function: no I/O, no state.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use portcullis_wire::Connect;

use crate::config::model::{self, Password};
use crate::config::{At, Document};
use crate::expr::{Expression, Facts, Wanted, compile};
use crate::identity::{OWN_CLAIMS, Signer};
use crate::outcome::Reject;

/// Of a token towards a broker: it is used once, a moment later.
const TOKEN_LIFETIME: Duration = Duration::from_secs(5 * 60);

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
    password: Option<NewPassword>,
}

#[derive(Debug)]
enum NewPassword {
    Expression(Expression),
    Token(Token),
}

/// What a token towards the broker is made of.
#[derive(Debug)]
struct Token {
    signer: Arc<Signer>,
    claims: Vec<(String, Expression)>,
    audience: Option<String>,
    lifetime: Duration,
}

/// What signs tokens; `None`: what the configuration says of it is wrong.
pub(crate) type Signing = Option<Arc<Signer>>;

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

    /// Whether an expression uses this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        self.require.iter().any(|expression| expression.uses(name))
    }

    /// Whether everybody is let in.
    pub fn is_empty(&self) -> bool {
        self.require.is_empty()
    }
}

impl Rewriting {
    /// Compiles the table; `signer` is what tokens are signed by, if there is one. Says what is wrong in the document's
    /// problems.
    pub(crate) fn compile(connect: &model::Connect, signer: Option<&Signing>, document: &mut Document) -> Self {
        let password = connect.password.as_ref().and_then(|at| match &at.value {
            Password::Expression(source) => {
                let source = At { value: source.clone(), span: at.span.clone() };
                let password = compile(Some(&source), Wanted::String, document)?;
                Some(NewPassword::Expression(password.known_as("connect.password")))
            }
            Password::Token(token) => Token::compile(token, &at.span, signer, document).map(NewPassword::Token),
        });
        let mut field = |source: &Option<At<String>>| compile(source.as_ref(), Wanted::String, document);
        Self { client_id: field(&connect.client_id), username: field(&connect.username), password }
    }

    /// Whether an expression uses this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        let fields = [&self.client_id, &self.username];
        fields.into_iter().flatten().any(|field| field.uses(name))
            || match &self.password {
                Some(NewPassword::Expression(password)) => password.uses(name),
                Some(NewPassword::Token(token)) => token.claims.iter().any(|(_, claim)| claim.uses(name)),
                None => false,
            }
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
            password: match &self.password {
                Some(NewPassword::Expression(password)) => Some(password.text(facts)?),
                Some(NewPassword::Token(token)) => Some(Arc::new(token.make(facts)?)),
                None => None,
            },
        })
    }
}

impl Token {
    fn compile(
        token: &model::Token,
        span: &Range<usize>,
        signer: Option<&Signing>,
        document: &mut Document,
    ) -> Option<Self> {
        let Some(signer) = signer else {
            let problem = document.problems.error(span, "a token needs a key to be signed with");
            problem.hint("[identity] private_key = \"identity.key\" issuer = \"https://gateway.example.com\"");
            return None;
        };
        // What is wrong with the key has been said.
        let signer = signer.as_ref()?;
        if let Some(own) = token.claims.keys().find(|name| OWN_CLAIMS.contains(&name.as_str())) {
            document.problems.error(span, format!("the claim `{own}` is set by the gateway"));
            return None;
        }
        if !token.claims.contains_key("sub") {
            let problem = document.problems.warning(span, "the token says nothing of who the client is: no `sub`");
            problem.hint("claims = { sub = 'cert.subject.cn' }");
        }
        if token.audience.is_none() {
            let problem = document.problems.warning(span, "any service that trusts this gateway takes the token");
            problem.hint("audience = \"brokers\"");
        }
        let compile = |(name, source): (&String, &String)| {
            let source = At { value: source.clone(), span: span.clone() };
            let expression = compile(Some(&source), Wanted::Json, document)?;
            Some((name.clone(), expression.known_as(&format!("connect.password.claims.{name}"))))
        };
        let claims: Option<Vec<_>> = token.claims.iter().map(compile).collect();
        let lifetime = token.lifetime.map_or(TOKEN_LIFETIME, |period| period.0);
        Some(Self { signer: Arc::clone(signer), claims: claims?, audience: token.audience.clone(), lifetime })
    }

    fn make(&self, facts: &Facts<'_>) -> Result<String, Reject> {
        let claim = |(name, expression): &(String, Expression)| Ok((name.clone(), expression.json(facts)?));
        let claims = self.claims.iter().map(claim).collect::<Result<_, Reject>>()?;
        self.signer.sign(claims, self.audience.as_deref(), self.lifetime).map_err(|_| Reject::RewriteFailed)
    }
}

impl Replacements {
    /// Fills what nothing else replaces by what an authenticator says.
    #[must_use]
    pub fn or_else(self, client_id: Option<String>, username: Option<String>) -> Self {
        Self {
            client_id: self.client_id.or_else(|| client_id.map(Arc::new)),
            username: self.username.or_else(|| username.map(Arc::new)),
            password: self.password,
        }
    }

    /// Whether CONNECT goes on as it came.
    pub const fn is_empty(&self) -> bool {
        self.client_id.is_none() && self.username.is_none() && self.password.is_none()
    }

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
