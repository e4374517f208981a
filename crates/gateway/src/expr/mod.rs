//! CEL: expressions over what is known of a client when its CONNECT has arrived. Compiled and judged when the
//! configuration is loaded, evaluated once for each CONNECT. Enters: [`Facts`]. Leaves: a boolean or a string, or a
//! refusal. Nothing here ever guesses: an error, a field that is not there, a value of another type is a refusal.
//!
//! In two ways this is stricter than CEL. `||` and `&&` go from left to right and hand an error on, where CEL may absorb
//! it. And an expression that uses `cert`, `jwt`, `device` or `http` without asking for it with `has()` refuses every client
//! that has none, whatever else the expression says.

mod check;
mod strict;
mod value;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::{Env, Value};

use crate::outcome::Reject;
use crate::peer::{FACTS, Facts, ROOTS, root_of};

/// Longer expressions are refused at load, in bytes.
const MAX_LEN: usize = 4096;

/// The language: standard functions and macros, and the string extensions (`lowerAscii`, `replace`, `split`, ...).
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    env.add_extension(cel::extensions::strings).expect("the strings extension adds nothing that is there already");
    Arc::new(env)
});

/// What an expression has to yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// True or false.
    Bool,
    /// Text.
    String,
    /// Whatever JSON has.
    Json,
}

/// A compiled expression.
pub struct Expression {
    /// What the log calls it: its source, unless that may have a secret in it.
    name: Box<str>,
    tree: IdedExpr,
    names: Names,
}

/// Which names an expression uses.
#[derive(Clone, Debug)]
struct Names {
    /// The facts, by position in [`FACTS`]: no others are made.
    facts: Box<[usize]>,
    /// Optional roots that it uses without asking for them with `has()`, by position in [`ROOTS`].
    required: Box<[usize]>,
    /// It uses only what TLS proved, and that for certain.
    is_about_proofs: bool,
}

/// What is wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    /// What it is.
    pub message: String,
    /// Where in the expression, in bytes.
    pub span: Range<usize>,
    /// What may have been meant.
    pub hint: Option<String>,
}

impl Expression {
    /// Compiles an expression, and judges names, member paths, functions and types as far as they are known before a
    /// client is there.
    ///
    /// # Errors
    /// Everything that was found wrong.
    pub fn compile(source: &str, wanted: Wanted) -> Result<Self, Vec<ExpressionError>> {
        if source.len() > MAX_LEN {
            let message = format!("an expression has at most {MAX_LEN} bytes, this one has {}", source.len());
            return Err(vec![ExpressionError { message, span: 0..source.len(), hint: None }]);
        }
        let program = LANGUAGE.compile(source).map_err(|error| {
            let message = error.to_string().lines().next().unwrap_or("cannot be parsed").to_owned();
            vec![ExpressionError { message, span: 0..source.len(), hint: None }]
        })?;
        let names = check::check(source, &program, wanted)?;
        Ok(Self { name: source.into(), tree: strict::strict(program.expression().clone()), names })
    }

    /// Whether it uses a fact of a top-level name.
    pub(crate) fn uses(&self, root: &str) -> bool {
        self.names.facts.iter().any(|fact| root_of(FACTS[*fact].path) == root)
    }

    /// Whether it uses only what TLS proved, and that for certain: a certificate, a raw key, the identity of a pre-shared
    /// key.
    pub(crate) const fn is_about_proofs(&self) -> bool {
        self.names.is_about_proofs
    }

    /// Its source, or what replaces it in the log.
    pub(crate) fn source(&self) -> &str {
        &self.name
    }

    /// Replaces the source as what the log calls this expression.
    #[must_use]
    pub fn known_as(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Evaluates an expression that yields a boolean.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`], whatever went wrong.
    pub fn is_true(&self, facts: &Facts<'_>) -> Result<bool, Reject> {
        match self.evaluate(facts)? {
            Value::Bool(value) => Ok(value),
            _ => Err(self.failed("it yields no boolean")),
        }
    }

    /// Evaluates an expression that yields a string.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`], whatever went wrong.
    pub fn text(&self, facts: &Facts<'_>) -> Result<Arc<String>, Reject> {
        match self.evaluate(facts)? {
            Value::String(value) => Ok(value),
            _ => Err(self.failed("it yields no string")),
        }
    }

    /// Evaluates an expression that yields something that JSON has; timestamps are seconds since 1970.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`], whatever went wrong.
    pub fn json(&self, facts: &Facts<'_>) -> Result<serde_json::Value, Reject> {
        value::to_json(&self.evaluate(facts)?).ok_or_else(|| self.failed("it yields something that JSON has not"))
    }

    fn evaluate(&self, facts: &Facts<'_>) -> Result<Value, Reject> {
        if !self.names.required.iter().all(|root| facts.has_root(&ROOTS[*root])) {
            return Err(self.failed("a certificate, token, device or answer that it uses is missing"));
        }
        let context = value::context(facts, &self.names.facts, Arc::clone(&LANGUAGE));
        // The error's own text quotes values, of which some are secrets; its kind is enough to find the place.
        Value::resolve(&self.tree, &context).map_err(|error| self.failed(describe(&error)))
    }

    fn failed(&self, why: &str) -> Reject {
        tracing::debug!(expression = &*self.name, why, "expression failed");
        Reject::ExpressionFailed
    }
}

fn describe(error: &cel::ExecutionError) -> &'static str {
    use cel::ExecutionError as E;
    match error {
        E::NoSuchKey(_) => "a field is not there",
        E::UndeclaredReference(_) => "a name is unknown",
        E::NoSuchOverload(_) | E::UnexpectedType { .. } | E::ValuesNotComparable(..) => "types do not fit",
        E::IndexOutOfBounds(_) => "an index is out of bounds",
        _ => "it cannot be evaluated",
    }
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({})", self.name)
    }
}
