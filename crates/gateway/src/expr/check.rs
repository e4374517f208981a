//! Judges an expression before there is a client: names, member paths, functions, types, cost.

use cel::Program;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

use super::facts::{NAMES, OPTIONAL, Type};
use super::{ExpressionError, Names, Wanted};
use crate::config::suggest;

/// Operators that are not judged beyond their operands.
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
const OF_STRINGS: &[&str] = &[
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

/// Functions that may be called, those of the language that have a use here, and what they yield.
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

/// The fields of `tls` that are proved, as `cert` is, and not only agreed on.
const PROOFS: &[&str] = &["psk_identity", "key_name", "key_fingerprint"];

/// `all`, `exists` and the like may stand in each other that deep: one deep, a client's user properties are walked
/// once; two deep, 9,000 of them would be walked 81 million times.
const MAX_COMPREHENSION_DEPTH: usize = 1;

/// Judges a program; returns the names it uses.
pub(super) fn check(source: &str, program: &Program, wanted: Wanted) -> Result<Names, Vec<ExpressionError>> {
    let mut checker =
        Checker { source, program, bound: Vec::new(), depth: 0, names: Names::default(), errors: Vec::new() };
    let found = checker.type_of(program.expression());
    let (expected, article) = match wanted {
        Wanted::Bool => (Type::Bool, "a boolean"),
        Wanted::String => (Type::String, "a string"),
        Wanted::Json => (Type::Unknown, "something"),
    };
    if !found.fits(expected) {
        let message = format!("this expression yields {}, {article} is wanted", found.name());
        checker.errors.push(ExpressionError { message, span: 0..source.len(), hint: None });
    }
    if checker.errors.is_empty() { Ok(checker.names) } else { Err(checker.errors) }
}

struct Checker<'a> {
    source: &'a str,
    program: &'a Program,
    /// Variables of the comprehensions around.
    bound: Vec<&'a str>,
    depth: usize,
    names: Names,
    errors: Vec<ExpressionError>,
}

impl<'a> Checker<'a> {
    fn error(&mut self, at: &IdedExpr, message: String) -> &mut ExpressionError {
        let span = self.span(at);
        self.errors.push(ExpressionError { message, span, hint: None });
        let last = self.errors.len() - 1;
        &mut self.errors[last]
    }

    /// The place of a node in bytes; the parser counts characters and includes the last.
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
        match &node.expr {
            Expr::Ident(name) => self.name(node, name),
            Expr::Select(select) => {
                let uses_others = self.names.uses_other_than_proofs;
                let operand = self.type_of(&select.operand);
                // Asked for with has(), it is only perhaps there.
                if path(&select.operand.expr) == "tls" && PROOFS.contains(&select.field.as_str()) && !select.test {
                    self.names.uses_other_than_proofs = uses_others;
                }
                let found = match operand {
                    Type::Struct(fields) => self.field(node, &select.operand.expr, fields, &select.field),
                    Type::Map | Type::Unknown => Type::Unknown,
                    other => {
                        self.error(node, format!("{} has no field `{}`", other.name(), select.field));
                        Type::Unknown
                    }
                };
                if select.test {
                    let path = path(&select.operand.expr);
                    let root = path.split('.').next().unwrap_or_default();
                    let position = NAMES.iter().take(OPTIONAL).position(|(name, _)| *name == root);
                    position.into_iter().for_each(|position| self.names.guarded.insert(position));
                }
                if select.test { Type::Bool } else { found }
            }
            Expr::Call(call) => self.call(node, call),
            Expr::Comprehension(comprehension) => {
                self.type_of(&comprehension.iter_range);
                if self.depth == MAX_COMPREHENSION_DEPTH {
                    self.error(node, "`all`, `exists`, `map` and `filter` may not stand inside each other".to_owned());
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
                self.error(node, "structures have no use here".to_owned());
                Type::Unknown
            }
        }
    }

    fn name(&mut self, node: &IdedExpr, name: &str) -> Type {
        if self.bound.contains(&name) {
            return Type::Unknown;
        }
        if let Some(position) = NAMES.iter().position(|(known, _)| *known == name) {
            self.names.roots.insert(position);
            self.names.uses_other_than_proofs |= name != "cert";
            return NAMES[position].1;
        }
        let suggestion = suggest(name, NAMES.iter().map(|(known, _)| *known));
        let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
        self.error(node, format!("unknown name `{name}`")).hint = Some(match suggestion {
            Some(suggestion) => format!("did you mean `{suggestion}`?"),
            None => format!("known are: {}", known.join(", ")),
        });
        Type::Unknown
    }

    fn field(&mut self, node: &IdedExpr, of: &Expr, fields: &[(&str, Type)], name: &str) -> Type {
        if let Some((_, found)) = fields.iter().find(|(known, _)| *known == name) {
            return *found;
        }
        let path = path(of);
        let suggestion = suggest(name, fields.iter().map(|(known, _)| *known));
        let known: Vec<&str> = fields.iter().map(|(known, _)| *known).collect();
        let error = self.error(node, format!("`{path}` has no field `{name}`"));
        // The parser's place is that of the dot.
        error.span.end += name.len();
        error.hint = Some(match suggestion {
            Some(suggestion) => format!("did you mean `{path}.{suggestion}`?"),
            None => format!("it has: {}", known.join(", ")),
        });
        Type::Unknown
    }

    fn call(&mut self, node: &'a IdedExpr, call: &'a CallExpr) -> Type {
        let arguments: Vec<Type> =
            call.target.as_deref().into_iter().chain(&call.args).map(|a| self.type_of(a)).collect();
        match (call.func_name.as_str(), arguments.as_slice()) {
            (operators::LOGICAL_AND | operators::LOGICAL_OR | operators::LOGICAL_NOT, operands) => {
                if let Some(wrong) = operands.iter().find(|operand| !operand.fits(Type::Bool)) {
                    self.error(node, format!("{} stands where a boolean is wanted", wrong.name()));
                }
                Type::Bool
            }
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => {
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
                    self.error(node, format!("{} stands where a boolean is wanted", condition.name()));
                }
                if left == right { *left } else { Type::Unknown }
            }
            (operators::ADD, [left, right]) => {
                if !left.fits(*right) && (*left == Type::String || *right == Type::String) {
                    self.error(node, format!("{} cannot be added to {}", right.name(), left.name())).hint =
                        Some("string() makes a string of it".to_owned());
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
        if let Some(of) = of.filter(|of| OF_STRINGS.contains(&name) && !of.fits(Type::String)) {
            self.error(node, format!("`{name}` is for strings, and this is {}", of.name()));
        }
        // A pattern is compiled by the evaluator: it must be known to be one, and never be the client's.
        if name == "matches" {
            if self.depth > 0 {
                self.error(node, "`matches` may not stand in `all`, `exists`, `map` or `filter`".to_owned()).hint =
                    Some("the pattern would be compiled for each element".to_owned());
            }
            match call.args.last().map(|pattern| &pattern.expr) {
                Some(Expr::Literal(LiteralValue::String(pattern))) => {
                    if let Err(error) = cel_regex_check(pattern.inner()) {
                        self.error(node, format!("the pattern of `matches` is wrong: {error}"));
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

fn cel_regex_check(pattern: &str) -> Result<(), String> {
    regex::Regex::new(pattern)
        .map(drop)
        .map_err(|error| error.to_string().lines().last().unwrap_or_default().to_owned())
}

fn path(expr: &Expr) -> String {
    match expr {
        Expr::Ident(name) => name.clone(),
        Expr::Select(select) => format!("{}.{}", path(&select.operand.expr), select.field),
        _ => "it".to_owned(),
    }
}
