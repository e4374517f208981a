//! The expressions that most configurations have, evaluated without CEL: a fact, or two texts compared. Enters: a checked
//! expression, and facts. Leaves: its value, or nothing: then CEL evaluates it, and reports what is wrong.
//!
//! A CEL evaluation costs 10 µs, most of it for building its context. A client that lacks a fact is left to CEL, so that
//! errors are the same.

use std::borrow::Cow;

use cel::common::ast::{CallExpr, Expr, IdedExpr, operators};

use super::tree::{literal_of, path};
use crate::peer::{FACTS, FactType, FactValue, Facts};

/// An expression of such a form.
#[derive(Debug)]
pub(super) enum Direct {
    /// A text.
    Text(Operand),
    /// Whether two texts are equal, or differ.
    Compared { operands: [Operand; 2], is_equal: bool },
}

#[derive(Debug)]
pub(super) enum Operand {
    /// By its index in [`FACTS`].
    Fact(usize),
    Literal(Box<str>),
}

impl Direct {
    /// `None`: the expression has another form.
    pub(super) fn of(node: &IdedExpr) -> Option<Self> {
        match &node.expr {
            Expr::Call(CallExpr { func_name, target: None, args }) => {
                let is_equal = match func_name.as_str() {
                    operators::EQUALS => true,
                    operators::NOT_EQUALS => false,
                    _ => return None,
                };
                let [left, right] = args.as_slice() else { return None };
                Some(Self::Compared { operands: [Operand::of(left)?, Operand::of(right)?], is_equal })
            }
            _ => Operand::of(node).map(Self::Text),
        }
    }

    /// The value of a comparison; `None`: for CEL.
    pub(super) fn bool(&self, facts: &Facts<'_>) -> Option<bool> {
        match self {
            Self::Compared { operands: [left, right], is_equal } => {
                Some((left.text(facts)? == right.text(facts)?) == *is_equal)
            }
            Self::Text(_) => None,
        }
    }

    /// The value of a text; `None`: for CEL.
    pub(super) fn text(&self, facts: &Facts<'_>) -> Option<String> {
        match self {
            Self::Text(operand) => operand.text(facts).map(Cow::into_owned),
            Self::Compared { .. } => None,
        }
    }
}

impl Operand {
    fn of(node: &IdedExpr) -> Option<Self> {
        if let Some(literal) = literal_of(node) {
            return Some(Self::Literal(literal.into()));
        }
        let path = path(node)?;
        let is_it = |fact: &crate::peer::Fact| fact.path == path && fact.kind == FactType::String;
        FACTS.iter().position(is_it).map(Self::Fact)
    }

    fn text<'a>(&'a self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        match self {
            Self::Literal(text) => Some(Cow::Borrowed(text)),
            Self::Fact(index) => match FACTS[*index].get(facts)? {
                FactValue::Text(text) => Some(text),
                _ => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use portcullis_wire::{Connect, Properties, Version};

    use super::*;
    use crate::expr::{Expression, Wanted};
    use crate::peer::{AuthAttributes, Peer};

    #[test]
    fn it_says_what_cel_says() {
        let peer = Peer::plain(([192, 0, 2, 1], 5).into());
        for username in [None, Some("a"), Some("b")] {
            let connect = Connect {
                version: Version::V5,
                clean_start: true,
                keep_alive: 60,
                properties: Properties::default(),
                client_id: "a",
                will: None,
                username,
                password: None,
            };
            let attributes = AuthAttributes::default();
            let facts = Facts { peer: &peer, listener: "a", mqtt: &connect, attributes, now: 7 };
            for (source, wanted, is_direct) in [
                ("mqtt.client_id == mqtt.username", Wanted::Bool, true),
                ("mqtt.client_id != mqtt.username", Wanted::Bool, true),
                ("mqtt.username == 'b'", Wanted::Bool, true),
                ("'a' == conn.listener", Wanted::Bool, true),
                ("mqtt['client_id'] == 'a'", Wanted::Bool, true),
                ("cert.subject.cn == mqtt.client_id", Wanted::Bool, true),
                ("mqtt.username", Wanted::String, true),
                ("cert.subject.dn", Wanted::String, true),
                ("conn.remote_addr", Wanted::String, true),
                ("'a text'", Wanted::String, true),
                ("mqtt.keep_alive == 60", Wanted::Bool, false),
                ("has(mqtt.username) && mqtt.username == 'a'", Wanted::Bool, false),
                ("mqtt.client_id + 'x'", Wanted::String, false),
            ] {
                let expression = Expression::compile(source, wanted).unwrap();
                assert_eq!(expression.direct.is_some(), is_direct, "{source}");
                let by_cel = Expression { direct: None, ..Expression::compile(source, wanted).unwrap() };
                match wanted {
                    Wanted::Bool => assert_eq!(expression.try_bool(&facts), by_cel.try_bool(&facts), "{source}"),
                    _ => assert_eq!(expression.try_text(&facts), by_cel.try_text(&facts), "{source}"),
                }
            }
        }
    }
}
