//! Makes CEL's logical operators propagate errors. In CEL, `error || true` is true, which would admit a client whose
//! certificate is missing. Here both operators become conditionals, which evaluate from left to right and fail with the
//! first error.

use cel::common::ast::{CallExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

/// Rewrites an expression, with every `a || b` as `a ? true : b` and every `a && b` as `a ? b : false`.
pub(super) fn strict(node: IdedExpr) -> IdedExpr {
    let id = node.id;
    let boxed = |node: Box<IdedExpr>| Box::new(strict(*node));
    let all = |nodes: Vec<IdedExpr>| nodes.into_iter().map(strict).collect::<Vec<_>>();
    let expr = match node.expr {
        Expr::Call(call) => {
            let args = all(call.args);
            let constant = |value: bool| IdedExpr { id, expr: Expr::Literal(LiteralValue::Boolean(value.into())) };
            match (call.func_name.as_str(), <[IdedExpr; 2]>::try_from(args)) {
                (operators::LOGICAL_OR, Ok([left, right])) => conditional([left, constant(true), right]),
                (operators::LOGICAL_AND, Ok([left, right])) => conditional([left, right, constant(false)]),
                (_, Ok(args)) => Expr::Call(CallExpr { target: call.target.map(boxed), args: args.into(), ..call }),
                (_, Err(args)) => Expr::Call(CallExpr { target: call.target.map(boxed), args, ..call }),
            }
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
            Expr::List(list)
        }
        Expr::Map(mut map) => {
            for entry in &mut map.entries {
                if let EntryExpr::MapEntry(entry) = &mut entry.expr {
                    entry.key = strict(std::mem::take(&mut entry.key));
                    entry.value = strict(std::mem::take(&mut entry.value));
                }
            }
            Expr::Map(map)
        }
        Expr::Select(mut select) => {
            select.operand = boxed(select.operand);
            Expr::Select(select)
        }
        other => other,
    };
    IdedExpr { id, expr }
}

fn conditional(args: [IdedExpr; 3]) -> Expr {
    Expr::Call(CallExpr { func_name: operators::CONDITIONAL.to_owned(), target: None, args: args.into() })
}
