//! Rewrites a checked expression before it is evaluated.
//!
//! - Logical operators propagate errors. In CEL, `error || true` is true, which would admit a client whose certificate is
//!   missing. Here both operators become conditionals, which evaluate from left to right and fail with the first error.
//! - Work is charged. The functions of [`budget`] take the place of those that multiply sizes, results that are built and
//!   operands that are read are charged by their size, and so is each step of a macro.
//! - Patterns of `matches` are compiled once.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

use super::budget;

/// A rewritten expression.
pub(super) struct Strict {
    pub(super) tree: IdedExpr,
    /// The patterns of `matches`, by their index in the rewritten calls.
    pub(super) patterns: Vec<budget::Pattern>,
}

/// Rewrites an expression, with every `a || b` as `a ? true : b` and every `a && b` as `a ? b : false`.
pub(super) fn strict(node: IdedExpr) -> Strict {
    let mut rewriting = Rewriting { patterns: Vec::new() };
    let tree = rewriting.rewrite(node);
    Strict { tree, patterns: rewriting.patterns }
}

struct Rewriting {
    patterns: Vec<budget::Pattern>,
}

impl Rewriting {
    fn rewrite(&mut self, node: IdedExpr) -> IdedExpr {
        let id = node.id;
        let expr = match node.expr {
            Expr::Call(call) if is_accumulation(&call) => Expr::Call(self.accumulation(call)),
            Expr::Call(call) => self.call(id, call),
            Expr::Comprehension(mut inner) => {
                for part in [&mut inner.iter_range, &mut inner.accu_init, &mut inner.loop_step, &mut inner.result] {
                    *part = self.rewrite(std::mem::take(part));
                }
                // Evaluated before each step.
                inner.loop_cond = charged(budget::STEP, self.rewrite(std::mem::take(&mut inner.loop_cond)));
                Expr::Comprehension(inner)
            }
            Expr::List(mut list) => {
                list.elements = self.all(list.elements);
                // What a macro begins with is empty.
                if list.elements.is_empty() { Expr::List(list) } else { spend(id, Expr::List(list)) }
            }
            Expr::Map(mut map) => {
                for entry in &mut map.entries {
                    if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                        entry.key = self.rewrite(std::mem::take(&mut entry.key));
                        entry.value = self.rewrite(std::mem::take(&mut entry.value));
                    }
                }
                spend(id, Expr::Map(map))
            }
            Expr::Select(mut select) => {
                select.operand = Box::new(self.rewrite(*select.operand));
                Expr::Select(select)
            }
            other => other,
        };
        IdedExpr { id, expr }
    }

    fn all(&mut self, nodes: Vec<IdedExpr>) -> Vec<IdedExpr> {
        nodes.into_iter().map(|node| self.rewrite(node)).collect()
    }

    fn call(&mut self, id: u64, mut call: CallExpr) -> Expr {
        if let Some(index) = self.pattern_of(&call) {
            return self.matches(id, call, index);
        }
        let (builds, reads) = (budget::BUILDERS.contains(&&*call.func_name), budget::reads(&call.func_name));
        let mut args = self.all(std::mem::take(&mut call.args));
        let mut target = call.target.map(|target| self.rewrite(*target));
        if reads {
            args = args.into_iter().map(read).collect();
            target = target.map(read);
        }
        let constant = |value: bool| IdedExpr { id, expr: Expr::Literal(LiteralValue::Boolean(value.into())) };
        let call = match (call.func_name.as_str(), <[IdedExpr; 2]>::try_from(args)) {
            (operators::LOGICAL_OR, Ok([left, right])) => conditional([left, constant(true), right]),
            (operators::LOGICAL_AND, Ok([left, right])) => conditional([left, right, constant(false)]),
            (name @ ("replace" | "join" | "split" | "indexOf" | "lastIndexOf"), args) if target.is_some() => {
                bounded(name, target, args.map_or_else(|args| args, Vec::from))
            }
            (_, args) => {
                let args = args.map_or_else(|args| args, Vec::from);
                Expr::Call(CallExpr { target: target.map(Box::new), args, func_name: call.func_name })
            }
        };
        if builds { spend(id, call) } else { call }
    }

    /// Compiles the pattern of a call of `matches`. Returns its index; `None`: it is another function.
    fn pattern_of(&mut self, call: &CallExpr) -> Option<usize> {
        if call.func_name != "matches" {
            return None;
        }
        // Checked before: the pattern is a literal, and valid.
        let Some(Expr::Literal(LiteralValue::String(pattern))) = call.args.last().map(|arg| &arg.expr) else {
            return None;
        };
        self.patterns.push(budget::Pattern::compile(pattern.inner()).ok()?);
        Some(self.patterns.len() - 1)
    }

    fn matches(&mut self, id: u64, mut call: CallExpr, index: usize) -> Expr {
        call.args.pop();
        let text = call.target.take().map(|text| *text).or_else(|| call.args.pop()).unwrap_or_default();
        let index = i64::try_from(index).unwrap_or(i64::MAX);
        let index = IdedExpr { id, expr: Expr::Literal(LiteralValue::Int(index.into())) };
        let args = vec![self.rewrite(text), index];
        Expr::Call(CallExpr { func_name: budget::MATCHES.to_owned(), target: None, args })
    }

    /// Charges the new element only: charging the whole list in each step would cost the square of its length.
    fn accumulation(&mut self, mut call: CallExpr) -> CallExpr {
        for arg in &mut call.args {
            if let Expr::List(list) = &mut arg.expr {
                let elements = self.all(std::mem::take(&mut list.elements));
                list.elements = elements.into_iter().map(|node| charged(budget::SPEND, node)).collect();
            }
        }
        call
    }
}

/// Whether it is a step of `map` or `filter`, `@result + [element]`. A name with `@` cannot be written in an expression.
fn is_accumulation(call: &CallExpr) -> bool {
    let is_result = |node: &IdedExpr| matches!(&node.expr, Expr::Ident(name) if name.starts_with('@'));
    call.func_name == operators::ADD && call.args.first().is_some_and(is_result)
}

/// The call of a member function that multiplies sizes, by its bounded counterpart.
fn bounded(name: &str, target: Option<IdedExpr>, args: Vec<IdedExpr>) -> Expr {
    let all: Vec<_> = target.into_iter().chain(args).collect();
    let func_name = match (name, all.len()) {
        ("replace", 3) => budget::REPLACE,
        ("replace", _) => budget::REPLACE_N,
        ("indexOf", 2) => budget::INDEX_OF,
        ("indexOf", _) => budget::INDEX_OF_FROM,
        ("lastIndexOf", 2) => budget::LAST_INDEX_OF,
        ("lastIndexOf", _) => budget::LAST_INDEX_OF_FROM,
        ("split", 2) => budget::SPLIT,
        ("split", _) => budget::SPLIT_N,
        (_, 1) => budget::JOIN,
        _ => budget::JOIN_WITH,
    };
    Expr::Call(CallExpr { func_name: func_name.to_owned(), target: None, args: all })
}

/// Charges an operand that is read as a whole. Literals are as long as the expression allows.
fn read(node: IdedExpr) -> IdedExpr {
    if matches!(node.expr, Expr::Literal(_)) { node } else { charged(budget::SPEND, node) }
}

/// Charges the result of an expression.
fn spend(id: u64, expr: Expr) -> Expr {
    charged(budget::SPEND, IdedExpr { id, expr }).expr
}

fn charged(by: &str, node: IdedExpr) -> IdedExpr {
    IdedExpr { id: node.id, expr: Expr::Call(CallExpr { func_name: by.to_owned(), target: None, args: vec![node] }) }
}

fn conditional(args: [IdedExpr; 3]) -> Expr {
    Expr::Call(CallExpr { func_name: operators::CONDITIONAL.to_owned(), target: None, args: args.into() })
}
