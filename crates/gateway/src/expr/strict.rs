//! Makes CEL's logical operators propagate errors. In CEL, `error || true` is true, which would admit a client whose
//! certificate is missing. Here both operators become conditionals, which evaluate from left to right and fail with the
//! first error. It also puts the functions of [`budget`] in the place of those that multiply sizes.

use super::budget;
use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Rewrites an expression, with every `a || b` as `a ? true : b` and every `a && b` as `a ? b : false`.
pub(super) fn strict(node: IdedExpr) -> IdedExpr {
    let id = node.id;
    let boxed = |node: Box<IdedExpr>| Box::new(strict(*node));
    let all = |nodes: Vec<IdedExpr>| nodes.into_iter().map(strict).collect::<Vec<_>>();
    let expr = match node.expr {
        Expr::Call(call) if is_accumulation(&call) => Expr::Call(accumulation(call)),
        Expr::Call(mut call) => {
            let args = all(std::mem::take(&mut call.args));
            let constant = |value: bool| IdedExpr { id, expr: Expr::Literal(LiteralValue::Boolean(value.into())) };
            let builds = budget::BUILDERS.contains(&call.func_name.as_str());
            let call = match (call.func_name.as_str(), <[IdedExpr; 2]>::try_from(args)) {
                (operators::LOGICAL_OR, Ok([left, right])) => conditional([left, constant(true), right]),
                (operators::LOGICAL_AND, Ok([left, right])) => conditional([left, right, constant(false)]),
                ("replace" | "join", args) if call.target.is_some() => bounded(call, args),
                (_, Ok(args)) => Expr::Call(CallExpr { target: call.target.map(boxed), args: args.into(), ..call }),
                (_, Err(args)) => Expr::Call(CallExpr { target: call.target.map(boxed), args, ..call }),
            };
            if builds { spend(id, call) } else { call }
        }
        Expr::Comprehension(mut inner) => {
            for part in [
                &mut inner.iter_range,
                &mut inner.accu_init,
                &mut inner.loop_cond,
                &mut inner.loop_step,
                &mut inner.result,
            ] {
                *part = strict(std::mem::take(part));
            }
            Expr::Comprehension(inner)
        }
        Expr::List(mut list) => {
            list.elements = all(list.elements);
            // What a macro begins with is empty.
            if list.elements.is_empty() { Expr::List(list) } else { spend(id, Expr::List(list)) }
        }
        Expr::Map(mut map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    entry.key = strict(std::mem::take(&mut entry.key));
                    entry.value = strict(std::mem::take(&mut entry.value));
                }
            }
            spend(id, Expr::Map(map))
        }
        Expr::Select(mut select) => {
            select.operand = boxed(select.operand);
            Expr::Select(select)
        }
        other => other,
    };
    IdedExpr { id, expr }
}

/// Whether it is a step of `map` or `filter`, `@result + [element]`. A name with `@` cannot be written in an expression.
fn is_accumulation(call: &CallExpr) -> bool {
    let is_result = |node: &IdedExpr| matches!(&node.expr, Expr::Ident(name) if name.starts_with('@'));
    call.func_name == operators::ADD && call.args.first().is_some_and(is_result)
}

/// Charges the new element only: charging the whole list in each step would cost the square of its length.
fn accumulation(mut call: CallExpr) -> CallExpr {
    for arg in &mut call.args {
        if let Expr::List(list) = &mut arg.expr {
            let charged = |node: IdedExpr| IdedExpr { id: node.id, expr: spend(node.id, strict(node).expr) };
            list.elements = std::mem::take(&mut list.elements).into_iter().map(charged).collect();
        }
    }
    call
}

/// The call of a member function that multiplies sizes, by its bounded counterpart.
fn bounded(call: CallExpr, args: Result<[IdedExpr; 2], Vec<IdedExpr>>) -> Expr {
    let mut all: Vec<_> = call.target.map(|target| strict(*target)).into_iter().collect();
    all.extend(args.map_or_else(|args| args, Vec::from));
    let func_name = match (call.func_name.as_str(), all.len()) {
        ("replace", 3) => budget::REPLACE,
        ("replace", _) => budget::REPLACE_N,
        (_, 1) => budget::JOIN,
        _ => budget::JOIN_WITH,
    };
    Expr::Call(CallExpr { func_name: func_name.to_owned(), target: None, args: all })
}

/// Charges the result of an expression.
fn spend(id: u64, expr: Expr) -> Expr {
    let args = vec![IdedExpr { id, expr }];
    Expr::Call(CallExpr { func_name: budget::SPEND.to_owned(), target: None, args })
}

fn conditional(args: [IdedExpr; 3]) -> Expr {
    Expr::Call(CallExpr { func_name: operators::CONDITIONAL.to_owned(), target: None, args: args.into() })
}
