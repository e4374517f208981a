//! Whether an expression binds what a client says of itself to what it proved. Enters: an expression, and what is known of
//! a kind of clients at load. Leaves: verdicts for `check`. They look at the form of an expression, not at its meaning: a
//! comparison with something proved is taken for the right one.

use cel::common::ast::{CallExpr, ComprehensionExpr, EntryExpr, Expr, IdedExpr, LiteralValue, operators};

use super::Expression;
use super::tree::{literal_of, path};
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

    /// A root or fact that these clients lack, and the expression requires.
    pub(crate) fn lacks(&self, client: &ClientKind<'_>) -> Option<&'static str> {
        let root = self.names.required.iter().map(|root| ROOTS[*root].name).find(|root| !(client.has_root)(root));
        root.or_else(|| {
            let analysis = Analysis::of(client, "");
            let tested =
                || (analysis.truth(&self.source) == Some(false)).then(|| analysis.tested(&self.source)).flatten();
            let path = analysis.missing(&self.source).or_else(tested)?;
            let root = ROOTS.iter().map(|root| root.name).find(|root| *root == root_of(&path))?;
            if !(client.has_root)(root) {
                return Some(root);
            }
            FACTS.iter().find(|fact| fact.path == path).map(|fact| fact.path)
        })
    }

    /// Whether clients of this kind for which the expression is true have proved `field`, a fact that they chose.
    pub(crate) fn binds(&self, field: &str, client: &ClientKind<'_>) -> bool {
        self.rejects_all(client) || Analysis::of(client, field).binds(&self.source, true)
    }

    /// Whether the value depends on something that clients of this kind proved.
    pub(crate) fn is_of_proved(&self, client: &ClientKind<'_>) -> bool {
        let analysis = Analysis::of(client, "");
        self.rejects_all(client)
            || analysis
                .branches(&self.source)
                .iter()
                .all(|branch| analysis.mentions(branch).identifies && analysis.separates(branch))
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

impl Expression {
    /// Whether every value contains one of these characters, because the expression adds text that does.
    pub(crate) fn always_contains(&self, characters: &[char]) -> bool {
        let mut parts = Vec::new();
        flatten(&self.source, &mut parts);
        parts.iter().any(|part| literal_of(part).is_some_and(|text| text.contains(characters)))
    }

    /// A fact that clients may lack, and that the expression uses without testing it with `has()`.
    pub(crate) fn untested(&self) -> Option<&'static str> {
        let mut tested = Vec::new();
        collect_tested(&self.source, &mut tested);
        let optional = self.names.facts.iter().map(|fact| &FACTS[*fact]).filter(|fact| fact.optional);
        optional.map(|fact| fact.path).find(|path| !tested.iter().any(|tested| tested == path))
    }
}

/// The paths that an expression tests with `has()`.
fn collect_tested(node: &IdedExpr, tested: &mut Vec<String>) {
    match &node.expr {
        Expr::Select(select) if select.test => {
            tested.extend(path(&select.operand).map(|path| path + "." + &select.field));
        }
        Expr::Call(call) => operands(call).for_each(|operand| collect_tested(operand, tested)),
        _ => {}
    }
}

/// Functions whose value contains text of their operands.
const TRANSPARENT: &[&str] =
    &[operators::ADD, "lowerAscii", "upperAscii", "replace", "split", "join", "string", "substring", "trim"];

/// What a value contains.
#[derive(Clone, Copy, Default)]
struct Mentions {
    /// The fact that the analysis is about.
    field: bool,
    /// Something that the client proved, and that is its own.
    identifies: bool,
    /// A fact that the client chose.
    chosen: Option<&'static str>,
}

/// Whether many clients prove the same value of this fact.
fn is_shared(path: &str) -> bool {
    let own = ["cert.subject.cn", "cert.subject.dn"];
    let is_name = path.starts_with("cert.subject.") && !own.contains(&path);
    is_name
        || ["jwt.iss", "jwt.aud"].contains(&path)
        || ["cert.issuer.", "cert.not_", "device.groups"].iter().any(|shared| path.starts_with(shared))
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
                (operators::GREATER, [left, right]) => is_version(left, right, |version, limit| version > limit),
                (operators::GREATER_EQUALS, [left, right]) => {
                    is_version(left, right, |version, limit| version >= limit)
                }
                (operators::LESS, [left, right]) => is_version(left, right, |version, limit| version < limit),
                (operators::LESS_EQUALS, [left, right]) => is_version(left, right, |version, limit| version <= limit),
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
        self.missing(node).is_some()
    }

    /// The path of a fact that the evaluation reads for all these clients, and that they lack.
    fn missing(&self, node: &IdedExpr) -> Option<String> {
        if let Some(path) = path(node) {
            let is_fact = ROOTS.iter().any(|root| root.name == root_of(&path));
            let is_variable = self.variables.iter().any(|(name, _)| *name == path);
            return (is_fact && !is_variable && self.is_absent(&path)).then_some(path);
        }
        match &node.expr {
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::LOGICAL_AND, [left, right]) => {
                    self.missing(left).or_else(|| self.missing(right).filter(|_| self.truth(left) == Some(true)))
                }
                (operators::LOGICAL_OR, [left, right]) => {
                    self.missing(left).or_else(|| self.missing(right).filter(|_| self.truth(left) == Some(false)))
                }
                (operators::CONDITIONAL, [condition, yes, no]) => {
                    self.missing(condition).or_else(|| match self.truth(condition) {
                        Some(true) => self.missing(yes),
                        Some(false) => self.missing(no),
                        None => self.missing(yes).filter(|_| self.fails(no)),
                    })
                }
                (_, operands) => {
                    call.target.as_deref().into_iter().chain(operands).find_map(|operand| self.missing(operand))
                }
            },
            Expr::Select(select) if !select.test => self.missing(&select.operand),
            Expr::Comprehension(comprehension) => self.missing(&comprehension.iter_range),
            Expr::List(list) => list.elements.iter().find_map(|element| self.missing(element)),
            _ => None,
        }
    }

    /// The path of a fact that a condition tests with `has()`, and that these clients lack.
    fn tested(&self, node: &IdedExpr) -> Option<String> {
        match &node.expr {
            Expr::Select(select) if select.test => {
                Some(path(&select.operand)? + "." + &select.field).filter(|path| self.is_absent(path))
            }
            Expr::Call(call) if call.func_name != operators::LOGICAL_NOT => {
                call.args.iter().find_map(|operand| self.tested(operand))
            }
            _ => None,
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

    /// Whether a text stands between what the client chose and what it proved: without, `dev-1` and `2` are `dev-12`.
    fn separates(&self, node: &'a IdedExpr) -> bool {
        let mut parts = Vec::new();
        flatten(node, &mut parts);
        parts.windows(2).all(|pair| {
            let [left, right] = [pair[0], pair[1]].map(|part| self.mentions(part));
            let meet = (left.chosen.is_some() && right.identifies) || (left.identifies && right.chosen.is_some());
            !meet || is_text(pair[0]) || is_text(pair[1])
        })
    }

    /// Whether the field is proved wherever this condition has the value `wanted`.
    fn binds(&self, node: &'a IdedExpr, wanted: bool) -> bool {
        if self.truth(node) == Some(!wanted) || self.fails(node) {
            return true;
        }
        match &node.expr {
            Expr::Call(call) => self.call_binds(call, wanted),
            Expr::Comprehension(comprehension) => self.macro_binds(comprehension, wanted),
            _ => false,
        }
    }

    fn call_binds(&self, call: &'a CallExpr, wanted: bool) -> bool {
        match (call.func_name.as_str(), call.args.as_slice()) {
            (operators::LOGICAL_NOT, [operand]) => self.binds(operand, !wanted),
            // The two hold together: `&&` if it is true, `||` if it is false.
            (operators::LOGICAL_AND, [left, right]) if wanted => self.binds(left, true) || self.binds(right, true),
            (operators::LOGICAL_OR, [left, right]) if !wanted => self.binds(left, false) || self.binds(right, false),
            (operators::LOGICAL_AND | operators::LOGICAL_OR, [left, right]) => {
                self.binds(left, wanted) && self.binds(right, wanted)
            }
            (operators::CONDITIONAL, [condition, yes, no]) => match self.truth(condition) {
                Some(value) => self.binds(if value { yes } else { no }, wanted),
                None => {
                    (self.binds(condition, true) || self.binds(yes, wanted))
                        && (self.binds(condition, false) || self.binds(no, wanted))
                }
            },
            (operators::EQUALS | operators::NOT_EQUALS, [left, right]) => {
                let wanted = wanted == (call.func_name == operators::EQUALS);
                match (boolean_of(left), boolean_of(right)) {
                    (_, Some(value)) => self.binds(left, wanted == value),
                    (Some(value), _) => self.binds(right, wanted == value),
                    _ => wanted && (self.is_tied(left, right) || self.is_tied(right, left)),
                }
            }
            (operators::IN, [field, list]) => wanted && self.is_tied(field, list),
            ("startsWith", [prefix]) => wanted && last_of(prefix).is_some_and(is_text) && self.is_part(call, prefix),
            ("endsWith", [suffix]) => wanted && first_of(suffix).is_some_and(is_text) && self.is_part(call, suffix),
            _ => false,
        }
    }

    /// Whether a function of the field has `part` as its operand, and that is proved.
    fn is_part(&self, call: &'a CallExpr, part: &'a IdedExpr) -> bool {
        call.target.as_deref().is_some_and(|target| self.is_tied(target, part))
    }

    /// `exists` and `exists_one`: one element of the range fulfils the condition. `all` is also true of an empty range.
    fn macro_binds(&self, comprehension: &'a ComprehensionExpr, wanted: bool) -> bool {
        let inner = self.inside(comprehension);
        match &comprehension.loop_step.expr {
            Expr::Call(step) => match (step.func_name.as_str(), step.args.as_slice()) {
                (operators::LOGICAL_OR, [_, condition]) | (operators::CONDITIONAL, [condition, ..]) => {
                    wanted && inner.binds(condition, true)
                }
                _ => false,
            },
            _ => false,
        }
    }

    /// The analysis of what a macro evaluates for each element.
    fn inside(&self, comprehension: &'a ComprehensionExpr) -> Self {
        let mut variables = self.variables.clone();
        variables.push((&comprehension.iter_var, self.mentions(&comprehension.iter_range)));
        Analysis { client: self.client, field: self.field, variables }
    }

    /// Whether `left` is made of the field, and `right` of something that identifies the client, and not of the field.
    fn is_tied(&self, left: &'a IdedExpr, right: &'a IdedExpr) -> bool {
        let (left, right) = (self.mentions(left), self.mentions(right));
        left.field && !left.identifies && right.identifies && !right.field
    }

    fn mentions(&self, node: &'a IdedExpr) -> Mentions {
        if let Some(path) = path(node) {
            return self.fact(&path);
        }
        match &node.expr {
            Expr::Call(call) => match (call.func_name.as_str(), call.args.as_slice()) {
                (operators::CONDITIONAL, [_, yes, no]) => self.each_of([yes, no]),
                // The index selects a part; it is not in the value.
                (operators::INDEX, [of, _]) => self.mentions(of),
                _ if TRANSPARENT.contains(&&*call.func_name) => self.all_of(operands(call)),
                // A function of what the client chose is chosen, too.
                _ => Mentions { identifies: false, ..self.all_of(operands(call)) },
            },
            // `map` and `filter`: the elements that each step appends.
            Expr::Comprehension(comprehension) => {
                let inner = self.inside(comprehension);
                let appended = appended_by(&comprehension.loop_step).map(|element| inner.mentions(element));
                appended.unwrap_or_else(|| Mentions { identifies: false, ..inner.mentions(&comprehension.loop_step) })
            }
            Expr::List(list) => self.each_of(&list.elements),
            Expr::Map(map) => self.each_of(map.entries.iter().filter_map(|entry| match &entry.expr {
                EntryExpr::MapEntry(entry) => Some(&entry.value),
                EntryExpr::StructField(_) => None,
            })),
            _ => Mentions::default(),
        }
    }

    /// What a value contains that is made of all these.
    fn all_of(&self, nodes: impl IntoIterator<Item = &'a IdedExpr>) -> Mentions {
        let mut all = Mentions::default();
        for mentions in nodes.into_iter().map(|node| self.mentions(node)) {
            all.identifies |= mentions.identifies;
            all.field |= mentions.field;
            all.chosen = all.chosen.or(mentions.chosen);
        }
        all
    }

    /// What a value contains that is one of these: it identifies the client only if each of them does.
    fn each_of(&self, nodes: impl IntoIterator<Item = &'a IdedExpr> + Clone) -> Mentions {
        let is_there = nodes.clone().into_iter().next().is_some();
        let identifies = nodes.clone().into_iter().all(|node| self.mentions(node).identifies);
        Mentions { identifies: is_there && identifies, ..self.all_of(nodes) }
    }

    fn fact(&self, path: &str) -> Mentions {
        if let Some((_, mentions)) = self.variables.iter().rev().find(|(name, _)| *name == path) {
            return *mentions;
        }
        let is_below = |path: &str, above: &str| {
            path == above || path.strip_prefix(above).is_some_and(|rest| rest.starts_with('.'))
        };
        // A fact, something in it, or a map of several.
        let mut facts = FACTS.iter().filter(|fact| is_below(path, fact.path) || is_below(fact.path, path)).peekable();
        let mut mentions = Mentions { identifies: facts.peek().is_some(), ..Mentions::default() };
        for fact in facts {
            let proved = (self.client.is_proved)(fact.path);
            mentions.identifies &= proved && !is_shared(fact.path) && !is_shared(path);
            mentions.field |= fact.path == self.field;
            mentions.chosen = mentions.chosen.or((fact.is_chosen() && !proved).then_some(fact.path));
        }
        mentions
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

fn boolean_of(node: &IdedExpr) -> Option<bool> {
    match &node.expr {
        Expr::Literal(LiteralValue::Boolean(value)) => Some(*value.inner()),
        _ => None,
    }
}

/// The value of a comparison of `mqtt.version` that is the same for all versions.
fn is_version(fact: &IdedExpr, limit: &IdedExpr, compare: fn(i64, i64) -> bool) -> Option<bool> {
    let Expr::Literal(LiteralValue::Int(limit)) = &limit.expr else { return None };
    if path(fact)? != "mqtt.version" {
        return None;
    }
    let all = [3, 4, 5].map(|version| compare(version, *limit.inner()));
    all.iter().all(|value| *value == all[0]).then_some(all[0])
}

fn operands(call: &CallExpr) -> impl Iterator<Item = &IdedExpr> {
    call.target.as_deref().into_iter().chain(&call.args)
}

/// The first operand of a concatenation; `None`: it is none.
fn first_of(node: &IdedExpr) -> Option<&IdedExpr> {
    let [left, _] = concatenated(node)?;
    first_of(left).or(Some(left))
}

/// The last operand of a concatenation; `None`: it is none.
fn last_of(node: &IdedExpr) -> Option<&IdedExpr> {
    let [_, right] = concatenated(node)?;
    last_of(right).or(Some(right))
}

fn concatenated(node: &IdedExpr) -> Option<&[IdedExpr; 2]> {
    match &node.expr {
        Expr::Call(call) if call.func_name == operators::ADD => call.args.as_slice().try_into().ok(),
        _ => None,
    }
}

/// The operands of a concatenation, in order.
fn flatten<'a>(node: &'a IdedExpr, parts: &mut Vec<&'a IdedExpr>) {
    match concatenated(node) {
        Some(operands) => operands.iter().for_each(|operand| flatten(operand, parts)),
        None => parts.push(node),
    }
}

/// Whether this is text that separates a name from what follows. Without it, `dev-1` would be a prefix of `dev-10`.
fn is_text(node: &IdedExpr) -> bool {
    literal_of(node).is_some_and(|text| !text.is_empty())
}

/// The element that a step of `map` or `filter` appends to the result.
fn appended_by(step: &IdedExpr) -> Option<&IdedExpr> {
    let Expr::Call(call) = &step.expr else { return None };
    match (call.func_name.as_str(), call.args.as_slice()) {
        (operators::ADD, [_, appended]) => match &appended.expr {
            Expr::List(list) => list.elements.first(),
            _ => None,
        },
        (operators::CONDITIONAL, [_, step, _]) => appended_by(step),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
