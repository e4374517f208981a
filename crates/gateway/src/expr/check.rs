//! Checks an expression at load: names, member paths, functions, types, cost.

use std::collections::BTreeSet;

use cel::Program;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

use super::{ExpressionError, Names, Wanted};
use crate::peer::{FACTS, FactType, ROOTS, root_of};
use crate::util::suggest::suggest;

/// A type as far as it is known at load.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Type {
    Bool,
    Int,
    String,
    Timestamp,
    List,
    Map,
    /// The facts whose paths begin with this and a dot.
    Group(&'static str),
    /// Known only at evaluation.
    Unknown,
}

impl Type {
    /// Whether a value of this type may also be of type `other`.
    fn fits(self, other: Type) -> bool {
        self == Type::Unknown || other == Type::Unknown || self == other
    }

    const fn name(self) -> &'static str {
        match self {
            Type::Bool => "a boolean",
            Type::Int => "a number",
            Type::String => "a string",
            Type::Timestamp => "a timestamp",
            Type::List => "a list",
            Type::Map => "a map",
            Type::Group(_) => "a group of fields",
            Type::Unknown => "a value",
        }
    }
}

impl From<FactType> for Type {
    fn from(kind: FactType) -> Self {
        match kind {
            FactType::Bool => Type::Bool,
            FactType::Int => Type::Int,
            FactType::String => Type::String,
            FactType::Timestamp => Type::Timestamp,
            FactType::List => Type::List,
            FactType::Map => Type::Map,
        }
    }
}

/// Operators whose result type is not tracked: only their operands are checked.
const OPERATORS: &[&str] = &[
    operators::ADD,
    operators::SUBSTRACT,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
    operators::INDEX,
];

/// Functions that are called on a string.
const STRING_FUNCTIONS: &[&str] = &[
    "contains",
    "startsWith",
    "endsWith",
    "matches",
    "charAt",
    "indexOf",
    "lastIndexOf",
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "substring",
    "trim",
];

/// The supported functions and the types that they yield.
const FUNCTIONS: &[(&str, Type)] = &[
    ("size", Type::Int),
    ("contains", Type::Bool),
    ("startsWith", Type::Bool),
    ("endsWith", Type::Bool),
    ("matches", Type::Bool),
    ("string", Type::String),
    ("int", Type::Int),
    ("uint", Type::Unknown),
    ("double", Type::Unknown),
    ("bool", Type::Bool),
    ("timestamp", Type::Timestamp),
    ("duration", Type::Unknown),
    ("getFullYear", Type::Int),
    ("getMonth", Type::Int),
    ("getDate", Type::Int),
    ("getDayOfMonth", Type::Int),
    ("getDayOfWeek", Type::Int),
    ("getDayOfYear", Type::Int),
    ("getHours", Type::Int),
    ("getMinutes", Type::Int),
    ("getSeconds", Type::Int),
    ("charAt", Type::String),
    ("indexOf", Type::Int),
    ("lastIndexOf", Type::Int),
    ("join", Type::String),
    ("lowerAscii", Type::String),
    ("upperAscii", Type::String),
    ("replace", Type::String),
    ("split", Type::List),
    ("substring", Type::String),
    ("trim", Type::String),
];

/// Maximum nesting of `all`, `exists`, `map` and `filter`. At depth 1, evaluation visits each of a client's user
/// properties once; at depth 2, it would visit 9,000 of them 81 million times.
const MAX_COMPREHENSION_DEPTH: usize = 1;

/// Checks a program. Returns the names that it uses.
pub(super) fn check(source: &str, program: &Program, wanted: Wanted) -> Result<Names, Vec<ExpressionError>> {
    let mut checker = Checker {
        source,
        program,
        bound: Vec::new(),
        depth: 0,
        facts: BTreeSet::new(),
        guarded: BTreeSet::new(),
        errors: Vec::new(),
    };
    let found = checker.type_of(program.expression());
    let (expected, article) = match wanted {
        Wanted::Bool => (Type::Bool, "a boolean"),
        Wanted::String => (Type::String, "a string"),
        Wanted::List => (Type::List, "a list"),
        Wanted::Json => (Type::Unknown, "a value"),
    };
    if !found.fits(expected) {
        let message = format!("this expression returns {}, expected {article}", found.name());
        checker.errors.push(ExpressionError { message, span: 0..source.len(), hint: None });
    }
    if checker.errors.is_empty() { Ok(checker.names()) } else { Err(checker.errors) }
}

struct Checker<'a> {
    source: &'a str,
    program: &'a Program,
    /// Variables of the enclosing comprehensions.
    bound: Vec<&'a str>,
    depth: usize,
    /// The facts that the expression uses, by index in [`FACTS`].
    facts: BTreeSet<usize>,
    /// The roots that the expression tests with `has()`.
    guarded: BTreeSet<&'static str>,
    errors: Vec<ExpressionError>,
}

impl<'a> Checker<'a> {
    fn names(&self) -> Names {
        let uses = |root: &str| self.facts.iter().any(|fact| root_of(FACTS[*fact].path) == root);
        Names {
            required: (0..ROOTS.len())
                .filter(|root| ROOTS[*root].is_optional() && uses(ROOTS[*root].name))
                .filter(|root| !self.guarded.contains(ROOTS[*root].name))
                .collect(),
            is_about_proofs: !self.facts.is_empty()
                && self.guarded.is_empty()
                && self.facts.iter().all(|fact| FACTS[*fact].proved),
            facts: self.facts.iter().copied().collect(),
        }
    }

    fn error(&mut self, at: &IdedExpr, message: String) -> &mut ExpressionError {
        let span = self.span(at);
        self.errors.push(ExpressionError { message, span, hint: None });
        let last = self.errors.len() - 1;
        &mut self.errors[last]
    }

    /// The byte range of a node. The parser counts characters, and its ranges include the last one.
    fn span(&self, at: &IdedExpr) -> std::ops::Range<usize> {
        let byte = |character: u32| {
            self.source.char_indices().nth(character as usize).map_or(self.source.len(), |(byte, _)| byte)
        };
        match self.program.source_info().offset_for(at.id) {
            Some((start, last)) => byte(start)..byte(last + 1),
            None => 0..self.source.len(),
        }
    }

    fn type_of(&mut self, node: &'a IdedExpr) -> Type {
        let found = self.type_of_operand(node);
        if let Type::Group(group) = found {
            // The expression uses the group as a whole.
            self.facts.extend((0..FACTS.len()).filter(|fact| is_in(FACTS[*fact].path, group)));
        }
        found
    }

    /// Like [`Self::type_of`], for an operand of which the expression may use only one field.
    fn type_of_operand(&mut self, node: &'a IdedExpr) -> Type {
        match &node.expr {
            Expr::Ident(name) => self.name(node, name),
            Expr::Select(select) => {
                let found = match self.type_of_operand(&select.operand) {
                    Type::Group(group) => self.field(node, group, &select.field),
                    Type::Map | Type::Unknown => Type::Unknown,
                    other => {
                        self.error(node, format!("{} has no field `{}`", other.name(), select.field));
                        Type::Unknown
                    }
                };
                if !select.test {
                    return found;
                }
                if let Type::Group(group) = found {
                    self.facts.extend((0..FACTS.len()).filter(|fact| is_in(FACTS[*fact].path, group)));
                }
                let path = path(&select.operand.expr);
                self.guarded.extend(ROOTS.iter().map(|root| root.name).find(|name| *name == root_of(&path)));
                Type::Bool
            }
            Expr::Call(call) => self.call(node, call),
            Expr::Comprehension(comprehension) => {
                self.type_of(&comprehension.iter_range);
                if self.depth == MAX_COMPREHENSION_DEPTH {
                    self.error(node, "`all`, `exists`, `map` and `filter` cannot be nested".to_owned());
                    return Type::Unknown;
                }
                let before = self.bound.len();
                self.depth += 1;
                self.bound.extend([comprehension.iter_var.as_str(), comprehension.accu_var.as_str()]);
                self.bound.extend(comprehension.iter_var2.as_deref());
                for part in [&comprehension.accu_init, &comprehension.loop_cond, &comprehension.loop_step] {
                    self.type_of(part);
                }
                let found = self.type_of(&comprehension.result);
                self.bound.truncate(before);
                self.depth -= 1;
                found
            }
            Expr::List(list) => {
                for element in &list.elements {
                    self.type_of(element);
                }
                Type::List
            }
            Expr::Map(map) => {
                for entry in &map.entries {
                    if let EntryExpr::MapEntry(entry) = &entry.expr {
                        self.type_of(&entry.key);
                        self.type_of(&entry.value);
                    }
                }
                Type::Map
            }
            Expr::Literal(literal) => match literal {
                LiteralValue::Boolean(_) => Type::Bool,
                LiteralValue::Int(_) => Type::Int,
                LiteralValue::String(_) => Type::String,
                _ => Type::Unknown,
            },
            Expr::Struct(_) | Expr::Unspecified => {
                self.error(node, "structures are not supported".to_owned());
                Type::Unknown
            }
        }
    }

    fn name(&mut self, node: &IdedExpr, name: &str) -> Type {
        if self.bound.contains(&name) {
            return Type::Unknown;
        }
        if let Some(found) = self.resolve(name) {
            return found;
        }
        let known = || ROOTS.iter().map(|root| root.name);
        self.error(node, format!("unknown name `{name}`")).hint = Some(match suggest(name, known()) {
            Some(suggestion) => format!("did you mean `{suggestion}`?"),
            None if fact_named(name).is_some() => {
                format!("did you mean `{}`?", fact_named(name).unwrap_or_default())
            }
            None if name == self.source.trim() => format!("a constant text has quotes of its own: '\"{name}\"'"),
            None => format!("available: {}", known().collect::<Vec<_>>().join(", ")),
        });
        Type::Unknown
    }

    fn field(&mut self, node: &IdedExpr, group: &'static str, name: &str) -> Type {
        if let Some(found) = self.resolve(&format!("{group}.{name}")) {
            return found;
        }
        let known = fields(group);
        let error = self.error(node, format!("`{group}` has no field `{name}`"));
        // The parser reports the position of the dot.
        error.span.end += name.len();
        error.hint = Some(match suggest(name, known.iter().copied()) {
            Some(suggestion) => format!("did you mean `{group}.{suggestion}`?"),
            None => format!("fields: {}", known.join(", ")),
        });
        Type::Unknown
    }

    /// The type of a path. Records a fact as used.
    fn resolve(&mut self, path: &str) -> Option<Type> {
        if let Some(position) = FACTS.iter().position(|fact| fact.path == path) {
            self.facts.insert(position);
            return Some(FACTS[position].kind.into());
        }
        let fact = FACTS.iter().find(|fact| is_in(fact.path, path))?;
        Some(Type::Group(&fact.path[..path.len()]))
    }

    fn call(&mut self, node: &'a IdedExpr, call: &'a CallExpr) -> Type {
        let arguments: Vec<Type> =
            call.target.as_deref().into_iter().chain(&call.args).map(|a| self.type_of(a)).collect();
        match (call.func_name.as_str(), arguments.as_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT, operands) => {
                if let Some(wrong) = operands.iter().find(|operand| !operand.fits(Type::Bool)) {
                    self.error(node, format!("expected a boolean, found {}", wrong.name()));
                }
                Type::Bool
            }
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => {
                // Whoever branches on the authenticator knows what its clients have.
                if call.args.iter().any(|operand| ["auth.kind", "auth.name"].contains(&&*path(&operand.expr))) {
                    self.guarded.extend(["jwt", "device", "http"]);
                }
                if !left.fits(*right) {
                    self.error(node, format!("{} never equals {}", left.name(), right.name()));
                }
                Type::Bool
            }
            (
                operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS,
                [left, right],
            ) => {
                if !left.fits(*right) {
                    self.error(node, format!("{} cannot be compared with {}", left.name(), right.name()));
                }
                Type::Bool
            }
            (operators::IN | operators::NOT_STRICTLY_FALSE, _) => Type::Bool,
            (operators::CONDITIONAL, [condition, left, right]) => {
                if !condition.fits(Type::Bool) {
                    self.error(node, format!("expected a boolean, found {}", condition.name()));
                }
                if left == right { *left } else { Type::Unknown }
            }
            (operators::ADD, [left, right]) => {
                if !left.fits(*right) && (*left == Type::String || *right == Type::String) {
                    self.error(node, format!("{} cannot be added to {}", right.name(), left.name())).hint =
                        Some("convert it with string()".to_owned());
                }
                if [*left, *right].contains(&Type::String) { Type::String } else { Type::Unknown }
            }
            (name, _) if OPERATORS.contains(&name) => Type::Unknown,
            (name, types) => self.function(node, call, name, types.first().copied()),
        }
    }

    fn function(&mut self, node: &IdedExpr, call: &CallExpr, name: &str, of: Option<Type>) -> Type {
        let Some((_, yields)) = FUNCTIONS.iter().find(|(known, _)| *known == name) else {
            let suggestion = suggest(name, FUNCTIONS.iter().map(|(known, _)| *known));
            self.error(node, format!("unknown function `{name}`")).hint =
                suggestion.map(|suggestion| format!("did you mean `{suggestion}`?"));
            return Type::Unknown;
        };
        if let Some(of) = of.filter(|of| STRING_FUNCTIONS.contains(&name) && !of.fits(Type::String)) {
            self.error(node, format!("`{name}` requires a string, found {}", of.name()));
        }
        // The evaluator compiles the pattern: it must be valid, and a client must not be able to choose it.
        if name == "matches" {
            if self.depth > 0 {
                self.error(node, "`matches` cannot be used inside `all`, `exists`, `map` or `filter`".to_owned())
                    .hint = Some("the pattern would be compiled for each element".to_owned());
            }
            match call.args.last().map(|pattern| &pattern.expr) {
                Some(Expr::Literal(LiteralValue::String(pattern))) => {
                    if let Err(error) = cel_regex_check(pattern.inner()) {
                        self.error(
                            node,
                            format!("invalid pattern of `matches`: {}", error.trim_start_matches("error: ")),
                        );
                    }
                }
                _ => {
                    self.error(node, "the pattern of `matches` must be a literal".to_owned());
                }
            }
        }
        *yields
    }
}

/// The fact that EMQX, mosquitto or VerneMQ call by this name in patterns.
fn fact_named(name: &str) -> Option<&'static str> {
    Some(match name.to_ascii_lowercase().replace(['_', '-'], "").as_str() {
        "clientid" | "client" => "mqtt.client_id",
        "username" | "user" => "mqtt.username",
        "cn" | "commonname" | "certcommonname" => "cert.subject.cn",
        "dn" | "certsubject" => "cert.subject.dn",
        "sub" => "jwt.sub",
        _ => return None,
    })
}

fn cel_regex_check(pattern: &str) -> Result<(), String> {
    super::budget::Pattern::compile(pattern)
        .map(drop)
        .map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
}

/// Whether a fact belongs to a group.
fn is_in(fact: &str, group: &str) -> bool {
    fact.strip_prefix(group).is_some_and(|rest| rest.starts_with('.'))
}

/// The fields of a group, in the order of [`FACTS`].
fn fields(group: &str) -> Vec<&'static str> {
    let in_group = FACTS.iter().filter(|fact| is_in(fact.path, group));
    let mut fields: Vec<&str> = in_group.map(|fact| root_of(&fact.path[group.len() + 1..])).collect();
    fields.dedup();
    fields
}

fn path(expr: &Expr) -> String {
    match expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", path(&select.operand.expr), select.field),
        _ => "it".to_owned(),
    }
}
