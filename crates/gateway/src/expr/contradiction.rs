//! Conditions that no client fulfils, alone or together, whatever it sends. Enters: expressions. Leaves: verdicts for
//! `check`, by their form.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};

use super::Expression;
use super::tree::{literal_of, path};
use super::values;

impl Expression {
    /// Whether no client fulfils both expressions, because a condition of one is the opposite of a condition of the other.
    pub(crate) fn contradicts(&self, other: &Self) -> bool {
        let others = conjuncts(&other.source);
        conjuncts(&self.source).iter().any(|one| others.iter().any(|other| are_opposite(one, other)))
    }

    /// A comparison of a fact with a value that it never has: the fact, the value, and what it has.
    pub(crate) fn impossible(&self) -> Option<(String, String, &'static str)> {
        let mut found = None;
        visit(&self.source, &mut |node| {
            if let Expr::Call(call) = &node.expr
                && let [left, right] = call.args.as_slice()
            {
                let compared = match call.func_name.as_str() {
                    operators::EQUALS | operators::NOT_EQUALS => vec![(left, right), (right, left)],
                    operators::IN => match &right.expr {
                        Expr::List(list) => list.elements.iter().map(|element| (left, element)).collect(),
                        _ => Vec::new(),
                    },
                    _ => Vec::new(),
                };
                let impossible = compared.into_iter().find_map(|(fact, value)| {
                    let (fact, value) = (path(fact)?, value_of(value)?);
                    let expected = values::expected(&fact, &value)?;
                    Some((fact, value, expected))
                });
                found = found.take().or(impossible);
            }
        });
        found
    }

    /// The members of a fact that the expression names, as in `conn.headers["x-tenant"]`, except inside macros.
    pub(crate) fn members_of(&self, fact: &str) -> Vec<String> {
        let mut found = Vec::new();
        visit(&self.source, &mut |node| {
            let member = path(node).and_then(|path| Some(path.strip_prefix(fact)?.strip_prefix('.')?.to_owned()));
            found.extend(member);
        });
        found
    }

    /// The texts that a fact is compared with by `==`, except inside macros.
    pub(crate) fn compared_with(&self, fact: &str) -> Vec<String> {
        let mut found = Vec::new();
        visit(&self.source, &mut |node| {
            if let Expr::Call(call) = &node.expr
                && call.func_name == operators::EQUALS
                && let [left, right] = call.args.as_slice()
            {
                for (of, text) in [(left, right), (right, left)] {
                    found.extend(literal_of(text).filter(|_| path(of).as_deref() == Some(fact)).map(str::to_owned));
                }
            }
        });
        found
    }
}

/// The value of a literal.
fn value_of(node: &IdedExpr) -> Option<String> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner().to_owned()),
        Expr::Literal(LiteralValue::Int(number)) => Some(number.inner().to_string()),
        Expr::Literal(LiteralValue::Double(number)) => Some(number.inner().to_string()),
        _ => None,
    }
}

fn visit<'a>(node: &'a IdedExpr, see: &mut impl FnMut(&'a IdedExpr)) {
    see(node);
    if let Expr::Call(call) = &node.expr {
        call.target.as_deref().into_iter().chain(&call.args).for_each(|operand| visit(operand, see));
    }
}

/// The conditions that all have to be true.
fn conjuncts(node: &IdedExpr) -> Vec<&IdedExpr> {
    match &node.expr {
        Expr::Call(call) if call.func_name == operators::LOGICAL_AND => call.args.iter().flat_map(conjuncts).collect(),
        _ => vec![node],
    }
}

/// Whether two conditions are never true at once: `a == b` and `a != b`, `a == "x"` and `a == "y"`, `has(a)` and `!has(a)`, or
/// `a.startsWith("x")` and `a.startsWith("y")`.
fn are_opposite(one: &IdedExpr, other: &IdedExpr) -> bool {
    if let (Some((test, wanted)), Some((other_test, other_wanted))) = (tested(one), tested(other)) {
        return test == other_test && wanted != other_wanted;
    }
    if let (Some((of, prefix)), Some((other_of, other_prefix))) = (prefixed(one), prefixed(other)) {
        return of == other_of && !prefix.starts_with(other_prefix) && !other_prefix.starts_with(prefix);
    }
    let comparison = |node: &IdedExpr| match &node.expr {
        Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::EQUALS, [left, right]) => Some((true, term(left)?, term(right)?)),
            (operators::NOT_EQUALS, [left, right]) => Some((false, term(left)?, term(right)?)),
            _ => None,
        },
        _ => None,
    };
    let (Some((equal, a, b)), Some((other_equal, c, d))) = (comparison(one), comparison(other)) else { return false };
    let is_same = (a == c && b == d) || (a == d && b == c);
    let are_two_values = |fact: &Term, value: &Term, fact2: &Term, value2: &Term| {
        fact == fact2 && matches!((value, value2), (Term::Value(one), Term::Value(other)) if one != other)
    };
    let pairs = [(&a, &b), (&b, &a)];
    let differ = || pairs.iter().any(|(a, b)| are_two_values(a, b, &c, &d) || are_two_values(a, b, &d, &c));
    (equal != other_equal && is_same) || (equal && other_equal && differ())
}

/// An operand that can be compared by its form.
#[derive(PartialEq, Eq)]
enum Term {
    Fact(String),
    /// A literal, as it is written.
    Value(String),
}

fn term(node: &IdedExpr) -> Option<Term> {
    path(node).map(Term::Fact).or_else(|| match &node.expr {
        Expr::Literal(LiteralValue::Int(number)) => Some(Term::Value(number.inner().to_string())),
        _ => literal_of(node).map(|text| Term::Value(format!("{text:?}"))),
    })
}

/// The path that a condition tests with `has()`, and the result that it wants.
fn tested(node: &IdedExpr) -> Option<(String, bool)> {
    match &node.expr {
        Expr::Select(select) if select.test => Some((path(&select.operand)? + "." + &select.field, true)),
        Expr::Call(call) if call.func_name == operators::LOGICAL_NOT => {
            tested(call.args.first()?).map(|(path, wanted)| (path, !wanted))
        }
        _ => None,
    }
}

/// The path and the literal of `startsWith`.
fn prefixed(node: &IdedExpr) -> Option<(String, &str)> {
    match &node.expr {
        Expr::Call(call) if call.func_name == "startsWith" => {
            Some((path(call.target.as_deref()?)?, literal_of(call.args.first()?)?))
        }
        _ => None,
    }
}
