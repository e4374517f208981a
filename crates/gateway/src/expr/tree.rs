//! The names and texts in the tree of an expression. Enters: a node. Leaves: what it stands for, if it is that simple.

use cel::common::ast::{Expr, IdedExpr, LiteralValue, operators};

/// The path of a fact or variable; `None`: the node is something else.
pub(super) fn path(node: &IdedExpr) -> Option<String> {
    match &node.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(path(&select.operand)? + "." + &select.field),
        // `cert["subject"]` is `cert.subject`.
        Expr::Call(call) if call.func_name == operators::INDEX => match call.args.as_slice() {
            [of, index] => Some(path(of)? + "." + literal_of(index)?),
            _ => None,
        },
        _ => None,
    }
}

/// A text in the expression; `None`: the node is something else.
pub(super) fn literal_of(node: &IdedExpr) -> Option<&str> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}
