//! CEL expressions over the facts about a client at the time of its CONNECT. Compiled and checked when the
//! configuration is loaded, evaluated once for each CONNECT. Enters: [`Facts`]. Leaves: a boolean, a string or a JSON
//! value, or a rejection. Expressions fail closed: an error, a missing field or a value of the wrong type rejects the
//! client.
//!
//! Two rules are stricter than in CEL. `||` and `&&` evaluate from left to right and propagate an error, which CEL may
//! absorb. And an expression that uses `cert`, `jwt`, `device` or `http` without testing it with `has()` rejects every
//! client that lacks it, whatever the rest of the expression returns.

mod binding;
mod budget;
mod check;
mod contradiction;
mod direct;
mod search;
mod strict;
mod syntax;
mod template;
mod tree;
mod value;
mod values;

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use cel::common::ast::IdedExpr;
use cel::{Env, Value};

pub(crate) use binding::ClientKind;
use direct::Direct;
use strict::{Strict, strict};
pub(crate) use template::Template;

use crate::outcome::{Reject, note_detail};
use crate::peer::{FACTS, Facts, ROOTS};

/// Maximum length of an expression in bytes.
const MAX_LEN: usize = 4096;

/// The language: standard functions and macros, and the string extensions (`lowerAscii`, `replace`, `split`, ...).
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let mut env = Env::stdlib();
    env.add_extension(cel::extensions::strings).expect("the strings extension does not redefine functions");
    Arc::new(env)
});

/// The type that an expression must yield.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// A boolean.
    Bool,
    /// A string.
    String,
    /// A list.
    List,
    /// Any value that JSON can represent.
    Json,
}

/// A compiled expression.
pub struct Expression {
    /// Its name in logs: the source, unless that may contain a secret.
    name: Box<str>,
    /// As it was parsed.
    source: IdedExpr,
    /// As it is evaluated.
    tree: IdedExpr,
    /// The patterns of `matches`.
    patterns: Arc<[budget::Pattern]>,
    names: Names,
    /// How it is evaluated without CEL, if it has a form for which that is possible.
    direct: Option<Direct>,
}

/// The names that an expression uses.
#[derive(Clone, Debug)]
struct Names {
    /// The facts, by index in [`FACTS`]. Only these are computed.
    facts: Box<[usize]>,
    /// Optional roots that it uses without testing them with `has()`, by index in [`ROOTS`].
    required: Box<[usize]>,
    /// Whether it uses at least one fact, only facts that TLS proves, and no `has()`.
    is_about_proofs: bool,
}

/// An error in an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpressionError {
    /// What is wrong.
    pub message: String,
    /// Byte range in the expression.
    pub span: Range<usize>,
    /// How to fix it.
    pub hint: Option<String>,
}

impl Expression {
    /// Compiles an expression and checks names, member paths, functions and, as far as they are known at load, types.
    ///
    /// # Errors
    /// All errors in the expression.
    pub fn compile(source: &str, wanted: Wanted) -> Result<Self, Vec<ExpressionError>> {
        if source.len() > MAX_LEN {
            let message = format!("an expression has at most {MAX_LEN} bytes, found {}", source.len());
            return Err(vec![ExpressionError { message, span: 0..source.len(), hint: None }]);
        }
        let program = LANGUAGE.compile(source).map_err(|error| {
            let message = error.to_string();
            vec![syntax::explain(source, message.lines().next().unwrap_or_default())]
        })?;
        let names = check::check(source, &program, wanted)?;
        let Strict { tree, patterns } = strict(program.expression().clone());
        let source_tree = program.expression().clone();
        let direct = Direct::of(&source_tree);
        Ok(Self { name: source.into(), source: source_tree, tree, patterns: patterns.into(), names, direct })
    }

    /// Whether it uses this fact, or a fact below this name.
    pub(crate) fn uses(&self, name: &str) -> bool {
        let is_below =
            |path: &str| path.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        self.names.facts.iter().any(|fact| is_below(FACTS[*fact].path))
    }

    /// Whether it uses only facts that TLS proves (a certificate, a raw public key, the identity of a pre-shared key),
    /// without `has()`.
    pub(crate) const fn is_about_proofs(&self) -> bool {
        self.names.is_about_proofs
    }

    /// Sets the name that logs show in place of the source.
    #[must_use]
    pub fn known_as(self, name: &str) -> Self {
        Self { name: name.into(), ..self }
    }

    /// Evaluates an expression that returns a boolean.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`]: the evaluation failed, or yielded another type.
    pub fn is_true(&self, facts: &Facts<'_>) -> Result<bool, Reject> {
        self.try_bool(facts).map_err(|why| failed(&why))
    }

    /// The same for expressions whose failure does not reject the client.
    ///
    /// # Errors
    /// Why there is no value.
    pub fn try_bool(&self, facts: &Facts<'_>) -> Result<bool, String> {
        if let Some(value) = self.direct.as_ref().and_then(|direct| direct.bool(facts)) {
            return Ok(value);
        }
        match self.evaluate(facts)? {
            Value::Bool(value) => Ok(value),
            _ => Err(self.because("not a boolean")),
        }
    }

    /// Evaluates an expression that returns a string.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`]: the evaluation failed, or yielded another type.
    pub fn text(&self, facts: &Facts<'_>) -> Result<Arc<String>, Reject> {
        self.try_text(facts).map_err(|why| failed(&why))
    }

    /// The same for expressions whose failure does not reject the client.
    ///
    /// # Errors
    /// Why there is no value.
    pub fn try_text(&self, facts: &Facts<'_>) -> Result<Arc<String>, String> {
        if let Some(value) = self.direct.as_ref().and_then(|direct| direct.text(facts)) {
            return Ok(Arc::new(value));
        }
        match self.evaluate(facts)? {
            Value::String(value) => Ok(value),
            _ => Err(self.because("not a string")),
        }
    }

    /// Evaluates an expression to a JSON value. Timestamps become seconds since 1970.
    ///
    /// # Errors
    /// [`Reject::ExpressionFailed`]: the evaluation failed, or yielded another type.
    pub fn json(&self, facts: &Facts<'_>) -> Result<serde_json::Value, Reject> {
        self.try_json(facts).map_err(|why| failed(&why))
    }

    /// The same for expressions whose failure does not reject the client.
    ///
    /// # Errors
    /// Why there is no value.
    pub fn try_json(&self, facts: &Facts<'_>) -> Result<serde_json::Value, String> {
        value::to_json(&self.evaluate(facts)?).ok_or_else(|| self.because("not representable in JSON"))
    }

    fn evaluate(&self, facts: &Facts<'_>) -> Result<Value, String> {
        if let Some(root) = self.names.required.iter().map(|root| &ROOTS[*root]).find(|root| !facts.has_root(root)) {
            return Err(self.because(&format!("the client has no {}", root.meaning)));
        }
        let mut context = cel::Context::with_env(Arc::clone(&LANGUAGE));
        budget::begin(&mut context, &self.patterns);
        value::add_facts(&mut context, facts, &self.names.facts)
            .map_err(|error| self.because(&self.describe(&error)))?;
        Value::resolve(&self.tree, &context).map_err(|error| self.because(&self.describe(&error)))
    }

    /// Describes an error. Its own text may quote values that clients chose, so it is not used.
    fn describe(&self, error: &cel::ExecutionError) -> String {
        use cel::ExecutionError as E;
        let text = match error {
            // The name of a field is shown if the expression has it.
            E::NoSuchKey(field) if self.name.contains(field.as_str()) => return format!("missing field `{field}`"),
            E::NoSuchKey(_) => "missing field",
            E::UndeclaredReference(_) => "unknown name",
            E::NoSuchOverload(_) | E::UnexpectedType { .. } | E::ValuesNotComparable(..) => "type mismatch",
            E::IndexOutOfBounds(_) => "index out of bounds",
            // These texts are ours.
            E::FunctionError { function, message } if function == budget::BY => message,
            _ => "evaluation failed",
        };
        text.to_owned()
    }

    fn because(&self, why: &str) -> String {
        format!("`{}`: {why}", self.name)
    }
}

fn failed(why: &str) -> Reject {
    note_detail(why);
    Reject::ExpressionFailed
}

impl fmt::Debug for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Expression({})", self.name)
    }
}

impl fmt::Display for Expression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}
