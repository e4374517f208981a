//! Whether an expression binds what a client says of itself to what it proved. Enters: an expression, and what is known of
//! a kind of clients at load. Leaves: verdicts for `check`. They look at the form of an expression, not at its meaning: a
//! comparison with something proved is taken for the right one.

use cel::common::ast::{CallExpr, Expr, IdedExpr, LiteralValue, operators};

use super::Expression;
use crate::peer::{FACTS, ROOTS, root_of};

/// A kind of clients of a listener: those that one authenticator admits, with or without a certificate.
pub(crate) struct ClientKind<'a> {
    /// Whether these clients have facts below this root.
    pub(crate) has_root: &'a dyn Fn(&str) -> bool,
    /// Whether these clients may have this fact, if they have its root.
    pub(crate) has_fact: &'a dyn Fn(&str) -> bool,
    /// Whether these clients proved this fact, or a fact below its root.
    pub(crate) is_proved: &'a dyn Fn(&str) -> bool,
    /// Name and kind of the authenticator.
    pub(crate) authenticator: Option<(&'a str, &'a str)>,
}

impl Expression {
    /// Whether no client of this kind gets a value, or only `false`.
    pub(crate) fn rejects_all(&self, client: &ClientKind<'_>) -> bool {
        let analysis = Analysis::of(client, "");
        self.lacks(client).is_some() || analysis.fails(&self.source) || analysis.truth(&self.source) == Some(false)
    }

    /// A root that these clients lack, and the expression requires.
    pub(crate) fn lacks(&self, client: &ClientKind<'_>) -> Option<&'static str> {
        self.names.required.iter().map(|root| ROOTS[*root].name).find(|root| !(client.has_root)(root))
    }

    /// Whether clients of this kind for which the expression is true have proved `field`, a fact that they chose.
    pub(crate) fn binds(&self, field: &str, client: &ClientKind<'_>) -> bool {
        self.rejects_all(client) || Analysis::of(client, field).binds(&self.source)
    }

    /// Whether the value depends on something that clients of this kind proved.
    pub(crate) fn is_of_proved(&self, client: &ClientKind<'_>) -> bool {
        let analysis = Analysis::of(client, "");
        self.rejects_all(client)
            || analysis.branches(&self.source).iter().all(|branch| analysis.mentions(branch).proved)
    }

    /// A fact in the value that clients of this kind choose and did not prove.
    pub(crate) fn chosen(&self, client: &ClientKind<'_>) -> Option<&'static str> {
        if self.rejects_all(client) {
            return None;
        }
        let analysis = Analysis::of(client, "");
        analysis.branches(&self.source).iter().find_map(|branch| analysis.mentions(branch).chosen)
    }
}

/// Functions whose value contains text of their operands.
const TRANSPARENT: &[&str] = &[
    operators::ADD,
    operators::INDEX,
    "lowerAscii",
    "upperAscii",
    "replace",
    "split",
    "join",
    "string",
    "substring",
    "trim",
];

/// Comparisons that hold only if one operand has something of the other.
const COMPARISONS: &[&str] = &[operators::EQUALS, operators::IN, "startsWith", "endsWith", "contains"];

/// What a value contains.
#[derive(Clone, Copy, Default)]
struct Mentions {
    field: bool,
    proved: bool,
    chosen: Option<&'static str>,
}

impl Mentions {
    fn and(self, other: Self) -> Self {
        Self {
            field: self.field || other.field,
            proved: self.proved || other.proved,
            chosen: self.chosen.or(other.chosen),
        }
    }
}

struct Analysis<'a> {
    client: &'a ClientKind<'a>,
    field: &'a str,
    /// The variables of enclosing macros, and what they range over.
    variables: Vec<(&'a str, Mentions)>,
}

impl<'a> Analysis<'a> {
    const fn of(client: &'a ClientKind<'a>, field: &'a str) -> Self {
        Self { client, field, variables: Vec::new() }
    }

    /// The value of a condition that is the same for all these clients.
    fn truth(&self, node: &IdedExpr) -> Option<bool> {
        match &node.expr {
            Expr::Literal(LiteralValue::Boolean(value)) => Some(*value.inner()),
            Expr::Select(select) if select.test => {
                let path = path(&select.operand)? + "." + &select.field;
                let root = ROOTS.iter().find(|root| root.name == root_of(&path))?;
                if self.is_absent(&path) {
                    return Some(false);
                }
                let is_always_there = |fact: &crate::peer::Fact| fact.path == path && !fact.optional;
                (root.is_optional() && FACTS.iter().any(is_always_there)).then_some(true)
            }
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::LOGICAL_NOT, [operand]) => self.truth(operand).map(|value| !value),
                (operators::LOGICAL_AND, [left, right]) => match (self.truth(left), self.truth(right)) {
                    (Some(false), _) | (_, Some(false)) => Some(false),
                    (Some(true), Some(true)) => Some(true),
                    _ => None,
                },
                (operators::LOGICAL_OR, [left, right]) => match (self.truth(left), self.truth(right)) {
                    (Some(true), _) | (_, Some(true)) => Some(true),
                    (Some(false), Some(false)) => Some(false),
                    _ => None,
                },
                (operators::CONDITIONAL, [condition, yes, no]) => match self.truth(condition) {
                    Some(value) => self.truth(if value { yes } else { no }),
                    None => self.truth(yes).filter(|value| self.truth(no) == Some(*value)),
                },
                (operators::EQUALS, [left, right]) => self.is_authenticator(left, right),
                (operators::NOT_EQUALS, [left, right]) => self.is_authenticator(left, right).map(|value| !value),
                _ => None,
            },
            _ => None,
        }
    }

    fn is_absent(&self, path: &str) -> bool {
        !(self.client.has_root)(root_of(path)) || !(self.client.has_fact)(path)
    }

    /// Whether the evaluation fails for all these clients, because it reads a fact that they lack.
    fn fails(&self, node: &IdedExpr) -> bool {
        if let Some(path) = path(node) {
            let is_fact = ROOTS.iter().any(|root| root.name == root_of(&path));
            return is_fact && !self.variables.iter().any(|(name, _)| *name == path) && self.is_absent(&path);
        }
        match &node.expr {
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::LOGICAL_AND, [left, right]) => {
                    self.fails(left) || (self.truth(left) == Some(true) && self.fails(right))
                }
                (operators::LOGICAL_OR, [left, right]) => {
                    self.fails(left) || (self.truth(left) == Some(false) && self.fails(right))
                }
                (operators::CONDITIONAL, [condition, yes, no]) => {
                    self.fails(condition)
                        || match self.truth(condition) {
                            Some(true) => self.fails(yes),
                            Some(false) => self.fails(no),
                            None => self.fails(yes) && self.fails(no),
                        }
                }
                (_, operands) => call.target.as_deref().into_iter().chain(operands).any(|operand| self.fails(operand)),
            },
            Expr::Select(select) if !select.test => self.fails(&select.operand),
            Expr::Comprehension(comprehension) => self.fails(&comprehension.iter_range),
            Expr::List(list) => list.elements.iter().any(|element| self.fails(element)),
            _ => false,
        }
    }

    /// Whether a comparison is one with the authenticator of these clients.
    fn is_authenticator(&self, left: &IdedExpr, right: &IdedExpr) -> Option<bool> {
        let (name, kind) = self.client.authenticator?;
        let (text, of) =
            literal_of(right).map(|text| (text, left)).or_else(|| literal_of(left).map(|text| (text, right)))?;
        match path(of)?.as_str() {
            "auth.name" => Some(text == name),
            "auth.kind" => Some(text == kind),
            _ => None,
        }
    }

    /// Whether the field is proved wherever this condition is true.
    fn binds(&self, node: &'a IdedExpr) -> bool {
        if self.truth(node) == Some(false) || self.fails(node) {
            return true;
        }
        match &node.expr {
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::LOGICAL_AND, [left, right]) => self.binds(left) || self.binds(right),
                (operators::LOGICAL_OR, [left, right]) => self.binds(left) && self.binds(right),
                (operators::CONDITIONAL, [condition, yes, no]) => match self.truth(condition) {
                    Some(true) => self.binds(yes),
                    Some(false) => self.binds(no),
                    None => (self.binds(condition) || self.binds(yes)) && self.binds(no),
                },
                (name, _) if COMPARISONS.contains(&name) => self.compares(call),
                _ => false,
            },
            Expr::Comprehension(comprehension) => {
                let range = self.mentions(&comprehension.iter_range);
                let mut variables = self.variables.clone();
                variables.push((&comprehension.iter_var, range));
                let inner = Analysis { client: self.client, field: self.field, variables };
                // The step combines the result so far with the condition of the macro.
                inner.binds_in_step(&comprehension.loop_step)
            }
            _ => false,
        }
    }

    fn binds_in_step(&self, step: &'a IdedExpr) -> bool {
        match &step.expr {
            Expr::Call(call) if COMPARISONS.contains(&&*call.func_name) => self.compares(call),
            Expr::Call(call) => call.args.iter().any(|part| self.binds_in_step(part)),
            _ => false,
        }
    }

    /// Whether a comparison has the field on one side, and something proved on the other.
    fn compares(&self, call: &'a CallExpr) -> bool {
        let operands: Vec<Mentions> =
            call.target.as_deref().into_iter().chain(&call.args).map(|operand| self.mentions(operand)).collect();
        match operands.as_slice() {
            [left, right] => (left.field && right.proved) || (left.proved && right.field),
            _ => false,
        }
    }

    fn mentions(&self, node: &'a IdedExpr) -> Mentions {
        if let Some(path) = path(node) {
            return self.fact(&path);
        }
        match &node.expr {
            Expr::Call(call) if TRANSPARENT.contains(&&*call.func_name) => {
                self.all(call.target.as_deref().into_iter().chain(&call.args))
            }
            Expr::Call(call) if call.func_name == operators::CONDITIONAL => self.all(call.args.iter().skip(1)),
            Expr::Comprehension(comprehension) => self.mentions(&comprehension.iter_range),
            Expr::List(list) => self.all(&list.elements),
            _ => Mentions::default(),
        }
    }

    fn all(&self, nodes: impl IntoIterator<Item = &'a IdedExpr>) -> Mentions {
        nodes.into_iter().map(|node| self.mentions(node)).fold(Mentions::default(), Mentions::and)
    }

    fn fact(&self, path: &str) -> Mentions {
        if let Some((_, mentions)) = self.variables.iter().rev().find(|(name, _)| *name == path) {
            return *mentions;
        }
        let fact = FACTS
            .iter()
            .find(|fact| fact.path == path || path.strip_prefix(fact.path).is_some_and(|rest| rest.starts_with('.')));
        let Some(fact) = fact else { return Mentions::default() };
        let proved = (self.client.is_proved)(fact.path);
        Mentions { field: fact.path == self.field, proved, chosen: (fact.is_chosen() && !proved).then_some(fact.path) }
    }

    /// The values of an expression, by the conditions that may hold for these clients.
    fn branches(&self, node: &'a IdedExpr) -> Vec<&'a IdedExpr> {
        match &node.expr {
            Expr::Call(call) if call.func_name == operators::CONDITIONAL && call.args.len() == 3 => {
                match self.truth(&call.args[0]) {
                    Some(true) => self.branches(&call.args[1]),
                    Some(false) => self.branches(&call.args[2]),
                    None => [self.branches(&call.args[1]), self.branches(&call.args[2])].concat(),
                }
            }
            _ if self.fails(node) => Vec::new(),
            _ => vec![node],
        }
    }
}

fn literal_of(node: &IdedExpr) -> Option<&str> {
    match &node.expr {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// The path of a fact or variable; `None`: the node is something else.
fn path(node: &IdedExpr) -> Option<String> {
    match &node.expr {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(select) if !select.test => Some(path(&select.operand)? + "." + &select.field),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expr::Wanted;

    fn expression(source: &str, wanted: Wanted) -> Expression {
        Expression::compile(source, wanted).unwrap_or_else(|errors| panic!("{source}: {errors:?}"))
    }

    /// Clients of a `jwt` authenticator named `tokens`, with or without a certificate.
    fn with_client<T>(has_certificate: bool, test: impl FnOnce(&ClientKind<'_>) -> T) -> T {
        let has_root = |root: &str| match root {
            "cert" => has_certificate,
            "device" | "http" => false,
            _ => true,
        };
        let is_proved = |path: &str| match root_of(path) {
            "cert" => has_certificate,
            "jwt" => true,
            _ => false,
        };
        let has_fact = |path: &str| !path.starts_with("tls.key_");
        test(&ClientKind {
            has_root: &has_root,
            has_fact: &has_fact,
            is_proved: &is_proved,
            authenticator: Some(("tokens", "jwt")),
        })
    }

    #[test]
    fn only_a_comparison_with_something_proved_binds() {
        for (source, expected) in [
            ("mqtt.client_id == jwt.sub", true),
            ("jwt.sub == mqtt.client_id", true),
            (r#"mqtt.client_id == "dev-" + jwt.sub"#, true),
            (r#"mqtt.client_id.startsWith(jwt.sub + "-")"#, true),
            ("mqtt.client_id.lowerAscii() == jwt.sub.lowerAscii()", true),
            ("mqtt.client_id in jwt.devices", true),
            ("jwt.devices.exists(d, d == mqtt.client_id)", true),
            ("mqtt.version >= 4 && mqtt.client_id == jwt.sub", true),
            (r#"auth.kind != "jwt" || mqtt.client_id == jwt.sub"#, true),
            (r#"auth.name == "tokens" ? mqtt.client_id == jwt.sub : true"#, true),
            ("has(device.id) || mqtt.client_id == jwt.sub", true),
            ("false", true),
            ("has(tls.key_name) ? true : mqtt.client_id == jwt.sub", true),
            ("has(jwt.sub) ? mqtt.client_id == jwt.sub : mqtt.client_id == tls.key_name", true),
            ("has(jwt.sub) ? mqtt.client_id == jwt.sub : mqtt.client_id == tls.sni", false),
            (r#"auth.name == "users""#, true),
            ("mqtt.version >= 4", false),
            ("true", false),
            ("mqtt.client_id == mqtt.username", false),
            ("mqtt.client_id != jwt.sub", false),
            ("!(mqtt.client_id == jwt.sub)", false),
            ("mqtt.client_id.size() == string(jwt.sub).size()", false),
            ("mqtt.client_id == jwt.sub || mqtt.version == 5", false),
            ("!has(jwt.sub) || mqtt.client_id == jwt.sub", false),
            ("has(jwt.sub) ? mqtt.client_id == jwt.sub : true", false),
            ("mqtt.username == jwt.sub", false),
            ("jwt.devices.exists(d, d != mqtt.client_id)", false),
            (r#"mqtt.client_id.matches("^[a-z]+$")"#, false),
            (r#"mqtt.client_id == "thing001""#, false),
        ] {
            let expression = expression(source, Wanted::Bool);
            assert_eq!(with_client(false, |it| expression.binds("mqtt.client_id", it)), expected, "{source}");
        }
    }

    #[test]
    fn what_lets_nobody_in_is_found() {
        for (source, expected) in [
            ("mqtt.client_id == cert.subject.cn", true),
            ("has(cert.subject.cn) && mqtt.version == 5", true),
            (r#"has(jwt.sub) || http.site == "lyon""#, true),
            (r#"auth.name == "users""#, true),
            ("has(cert.subject.cn) || mqtt.client_id == jwt.sub", false),
            ("has(jwt.sub)", false),
        ] {
            let expression = expression(source, Wanted::Bool);
            assert_eq!(with_client(false, |it| expression.rejects_all(it)), expected, "{source}");
            assert!(
                source.contains("http")
                    || source.contains("users")
                    || !with_client(true, |it| expression.rejects_all(it))
            );
        }
    }

    #[test]
    fn a_value_is_proved_in_each_of_its_branches() {
        for (source, is_of_proved, chosen) in [
            ("jwt.sub", true, None),
            (r#""dev-" + jwt.sub"#, true, None),
            (r#"jwt.sub + "/" + mqtt.client_id"#, true, Some("mqtt.client_id")),
            ("has(device.id) ? device.id : jwt.sub", true, None),
            (r#"auth.kind == "jwt" ? jwt.sub : mqtt.username"#, true, None),
            ("has(jwt.sub) ? jwt.sub : mqtt.username", false, Some("mqtt.username")),
            ("mqtt.client_id", false, Some("mqtt.client_id")),
            ("tls.sni", false, Some("tls.sni")),
            ("conn.remote_addr", false, None),
            (r#""verified""#, false, None),
        ] {
            let expression = expression(source, Wanted::String);
            with_client(false, |client| {
                assert_eq!(expression.is_of_proved(client), is_of_proved, "{source}");
                assert_eq!(expression.chosen(client), chosen, "{source}");
            });
        }
    }
}
