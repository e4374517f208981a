//! Parses the configuration file. Enters: a path. Leaves: a model of serde and every syntax and type error, not only
//! the first, with `${ENV:...}` and `${FILE:...}` substituted. A substituted value never appears in an error.
//!
//! serde stops at the first value it cannot read. So the file is parsed once into a tree with spans. Whenever serde
//! stops, this module reports the error, removes the entry from the tree and runs serde again.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::Value as Json;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::diagnostics::{Complaint, Diagnostics, Reported, overlap, warn_if_exposed};
use super::explain::{explain, hint_for_duplicate, item_of, list_for_table};
use super::syntax::explain_syntax;
use super::values::{Located, Location};
use crate::peer::{ROOTS, root_of};
use crate::util::file::{read, read_any};
use crate::util::suggest::suggest;

/// A configuration file during the validation of its tables.
#[derive(Debug)]
pub(super) struct Document {
    /// The problems found so far.
    pub(super) diagnostics: Diagnostics,
    directory: PathBuf,
    /// Keys whose values could not be read. The model lacks them, but they are not missing from the file.
    unread: Vec<Unread>,
}

/// A key whose value could not be read, with the position of the key.
#[derive(Debug)]
struct Unread {
    key: String,
    at: Range<usize>,
}

/// More problems than an operator reads at once.
const MAX_PROBLEMS: usize = 50;
/// In bytes.
const MAX_FILE_LEN: u64 = 4 << 20;

impl Document {
    /// Reads a file. The model is complete only if the document's diagnostics contain no error.
    pub(super) fn read<M: DeserializeOwned + JsonSchema + Default>(path: &Path) -> (M, Self) {
        match read_any(path, MAX_FILE_LEN).and_then(|bytes| text_of(&bytes)) {
            Ok(source) => Self::parse(path, &source),
            Err(error) => {
                let mut document = Self::new(path, String::new());
                document.diagnostics.file_error(format!("cannot be read: {error}"));
                (M::default(), document)
            }
        }
    }

    /// Parses text that stands in for the content of the file `path`.
    pub(super) fn parse<M: DeserializeOwned + JsonSchema + Default>(path: &Path, source: &str) -> (M, Self) {
        let schema = schemars::schema_for!(M).to_value();
        let mut document = Self::new(path, source.to_owned());
        let (mut tree, errors) = DeTable::parse_recoverable(source);
        let mut last_line = None;
        for (index, error) in errors.iter().enumerate() {
            let is_duplicate = error.message() == "duplicate key";
            // After a table that is there twice, each of its keys is; after a syntax error, some may only seem to be.
            if is_duplicate && index > 0 {
                continue;
            }
            let span = error.span().unwrap_or(0..0);
            let complaint = if is_duplicate {
                Complaint::new(error.message()).hint(hint_for_duplicate(source, &span, &schema))
            } else {
                explain_syntax(error.message(), source, &span)
            };
            // Several errors of one line are one mistake.
            let line = source.bytes().take(span.start).filter(|byte| *byte == b'\n').count();
            if last_line.replace(line) != Some(line) {
                document.diagnostics.error(&Location(span), complaint);
            }
        }
        // After a syntax error the tree is a guess: reporting keys as missing from it would mislead.
        if !errors.is_empty() {
            return (M::default(), document);
        }
        let Self { directory, diagnostics, unread } = &mut document;
        Substitution { directory, diagnostics, unread }.walk_table(tree.get_mut());
        let model = document.deserialize(tree, &schema);
        (model, document)
    }

    fn new(path: &Path, source: String) -> Self {
        let directory = path.parent().map(Path::to_owned).unwrap_or_default();
        let diagnostics = Diagnostics::new(path, source);
        Self { diagnostics, directory, unread: Vec::new() }
    }

    /// Reports an error.
    pub(super) fn error(&mut self, at: &(impl Located + ?Sized), complaint: impl Into<Complaint>) -> Reported {
        self.diagnostics.error(at, complaint)
    }

    /// Reports a warning.
    pub(super) fn warning(&mut self, at: &impl Located, complaint: impl Into<Complaint>) {
        self.diagnostics.warning(at, complaint);
    }

    /// The value of a required key of `table`. If it is missing, reports an error with `hint`.
    pub(super) fn require<T>(
        &mut self,
        value: Option<T>,
        table: &impl Located,
        key: &str,
        hint: &str,
    ) -> Result<T, Reported> {
        value.ok_or_else(|| {
            if self.is_unread(key, table) {
                return self.diagnostics.already_reported();
            }
            self.error(table, Complaint::new(format!("`{key}` is missing")).hint(hint))
        })
    }

    /// Whether the value of this key of a table, or a part of it, could not be read, or the key is misspelt. The error was
    /// reported.
    pub(super) fn is_unread(&self, key: &str, table: &impl Located) -> bool {
        let is_within = |at: &Range<usize>| table.location().is_none_or(|table| self.diagnostics.is_within(at, table));
        let is_key = |unread: &Unread| unread.key == key || suggest(&unread.key, [key]).is_some();
        self.unread.iter().any(|unread| is_key(unread) && is_within(&unread.at))
    }

    /// Whether the value contains a substitution, and so perhaps a secret.
    pub(super) fn is_substituted(&self, value: &impl Located) -> bool {
        value.location().is_some_and(|location| self.diagnostics.has_substitution(&location.0))
    }

    /// Resolves a path of the file: relative paths are relative to the file's directory.
    pub(super) fn resolve(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }

    fn deserialize<M: DeserializeOwned + Default>(&mut self, mut tree: Spanned<DeTable<'_>>, schema: &Json) -> M {
        while let Some((span, path)) = list_for_table(tree.get_ref(), schema) {
            let complaint = Complaint::new("expected one table, found a list");
            self.error(&Location(span.clone()), complaint.hint(format!("write the header as [{path}]")));
            if !remove(tree.get_mut(), &span, &mut self.unread) {
                break;
            }
        }
        for _ in 0..MAX_PROBLEMS {
            let error = match M::deserialize(toml::de::Deserializer::from(tree.clone())) {
                Ok(model) => return model,
                Err(error) => error,
            };
            let span = error.span().unwrap_or(0..0);
            let span = item_of(tree.get_ref(), &span, error.message()).unwrap_or(span);
            if self.diagnostics.has_substitution(&span) {
                // serde's message quotes the value, and this one may be a secret.
                self.error(&Location(span.clone()), "the substituted value is not valid here");
            } else {
                let complaint = explain(&error, schema);
                self.error(&Location(span.clone()), complaint);
            }
            let tree_span = tree.span();
            if !remove(tree.get_mut(), &span, &mut self.unread) && span == tree_span {
                break;
            }
        }
        M::default()
    }
}

fn text_of(bytes: &[u8]) -> std::io::Result<String> {
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| std::io::Error::other("it is not UTF-8"))
}

/// Removes the innermost entry that covers `span` from the tree and records its key. Returns whether it found one.
fn remove(table: &mut DeTable<'_>, span: &Range<usize>, unread: &mut Vec<Unread>) -> bool {
    let covers = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let entry = table.iter_mut().find_map(|(key, value)| {
        let is_inside = covers(value.span()) && value.span() != *span && remove_value(value, span, unread);
        (is_inside || covers(key.span()) || covers(value.span())).then(|| (key.clone(), is_inside))
    });
    match entry {
        Some((key, false)) => {
            unread.push(Unread { key: key.get_ref().to_string(), at: key.span() });
            table.remove(&key).is_some()
        }
        Some((key, true)) => {
            // A list that lost an entry differs from the one in the file.
            if table.get(&key).is_some_and(|value| matches!(value.get_ref(), DeValue::Array(_))) {
                unread.push(Unread { key: key.get_ref().to_string(), at: key.span() });
            }
            true
        }
        // The span of a table written in several parts covers only its header; its entries lie outside it.
        None => table.iter_mut().any(|(_, value)| remove_value(value, span, unread)),
    }
}

fn remove_value(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, unread: &mut Vec<Unread>) -> bool {
    match value.get_mut() {
        DeValue::Table(table) => remove(table, span, unread),
        DeValue::Array(items) => {
            if items.iter_mut().any(|item| item.span() != *span && remove_value(item, span, unread)) {
                return true;
            }
            let Some(at) = items.iter().position(|item| overlap(&item.span(), span)) else { return false };
            let mut left = DeArray::new();
            items.iter().enumerate().filter(|(index, _)| *index != at).for_each(|(_, item)| left.push(item.clone()));
            *items = left;
            true
        }
        _ => false,
    }
}

/// Keys whose values are templates, in which `${...}` is an expression.
const TEMPLATES: &[&str] = &["publish", "subscribe", "mountpoint"];
/// What substitutions begin with.
const SOURCES: &[&str] = &["ENV:", "FILE:"];

/// Replaces `${ENV:NAME}` and `${FILE:path}` in strings.
struct Substitution<'a> {
    directory: &'a Path,
    diagnostics: &'a mut Diagnostics,
    unread: &'a mut Vec<Unread>,
}

impl Substitution<'_> {
    /// Removes the entries whose substitution failed: what is wrong with the text as it stands is not what is wrong.
    fn walk_table(&mut self, table: &mut DeTable<'_>) {
        let mut failed = Vec::new();
        for (key, value) in table.iter_mut() {
            if self.walk(key.get_ref(), value).is_err() {
                failed.push(key.clone());
            }
        }
        for key in failed {
            self.unread.push(Unread { key: key.get_ref().to_string(), at: key.span() });
            table.remove(&key);
        }
    }

    fn walk(&mut self, key: &str, value: &mut Spanned<DeValue<'_>>) -> Result<(), Reported> {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => self.walk_table(table),
            DeValue::Array(items) => {
                let walked: Vec<_> = items.iter_mut().map(|value| self.walk(key, value)).collect();
                return walked.into_iter().collect();
            }
            DeValue::String(text) if text.contains("${") => match self.expand(key, &span, text) {
                Ok(Some(expanded)) => {
                    self.diagnostics.substituted(Location(span), &expanded);
                    *text = Cow::Owned(expanded);
                }
                Ok(None) => {}
                Err(message) => return Err(self.diagnostics.error(&Location(span), message)),
            },
            _ => {}
        }
        Ok(())
    }

    /// In the values of some keys, `${...}` is an expression unless it names a source.
    ///
    /// Returns `None` if there is nothing to insert.
    fn expand(&mut self, key: &str, span: &Range<usize>, text: &str) -> Result<Option<String>, Complaint> {
        let mut is_substituted = false;
        // Also if it is misspelt.
        let is_template = suggest(key, TEMPLATES.iter().copied()).is_some() || TEMPLATES.contains(&key);
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, reference)) = rest.split_once("${") {
            out.push_str(before);
            if is_template && !SOURCES.iter().any(|source| reference.starts_with(source)) {
                out.push_str("${");
                rest = reference;
                continue;
            }
            let (reference, after) = reference.split_once('}').ok_or("`${` has no closing `}`")?;
            let inserted = match reference.split_once(':') {
                Some(("ENV", name)) => std::env::var(name).map_err(|_| {
                    let complaint =
                        Complaint::new(format!("the environment variable `{name}` is not set or not UTF-8"));
                    complaint.hint(format!("set `{name}` where the gateway starts, or use ${{FILE:path}}"))
                })?,
                Some(("FILE", path)) => {
                    let path = self.directory.join(path);
                    let text = read(&path, MAX_FILE_LEN)
                        .and_then(|bytes| text_of(&bytes))
                        .map_err(|error| format!("{}: {error}", path.display()))?;
                    warn_if_exposed(&Location(span.clone()), &path, "the secret in", self.diagnostics);
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
                _ if ROOTS.iter().any(|root| root.name == root_of(reference)) => {
                    let complaint =
                        Complaint::new(format!("this is not text: `${{{reference}}}` has no meaning in it"));
                    return Err(complaint.hint(format!("the key takes an expression: '{reference}'")));
                }
                _ => {
                    let complaint = Complaint::new(format!("`${{{reference}}}` is not a known substitution"));
                    return Err(complaint.hint("use ${ENV:NAME} or ${FILE:path}"));
                }
            };
            if is_template && inserted.contains("${") {
                return Err(Complaint::new("the inserted text contains `${`: expressions cannot be inserted"));
            }
            self.diagnostics.substituted(Location(span.clone()), &inserted);
            out.push_str(&inserted);
            rest = after;
            is_substituted = true;
        }
        out.push_str(rest);
        Ok(is_substituted.then_some(out))
    }
}

#[cfg(test)]
mod tests {
    use super::super::diagnostics::Diagnostic;
    use super::super::tables::Model;
    use super::*;

    fn messages(source: &str) -> Vec<(String, Option<String>, String)> {
        let (_, document) = Document::parse::<Model>(Path::new("p.toml"), source);
        let of = |span: &Option<Range<usize>>| span.clone().map(|span| source[span].to_owned()).unwrap_or_default();
        let found = |it: &Diagnostic| (it.complaint.message.clone(), it.complaint.hint.clone(), of(&it.span));
        document.diagnostics.list().iter().map(found).collect()
    }

    #[test]
    fn every_problem_is_found_not_only_the_first() {
        let found = messages(
            r#"
[[listener]]
nmae = "a"
connect_timeout = "soon"
max_connections = -1
[listener.tls]
client_atuh = "required"
versions = ["1.2", "1.1"]
[[listener]]
protocol = "tsl"
bind = 7
[[upstream]]
servers = ["a:1", { address = "b:1", wieght = 2 }]
balance = "ketama"
[rutime]
"#,
        );
        let hint = |key: &str| Some(format!("did you mean `{key}`?"));
        let find =
            |text: &str| found.iter().find(|(.., at)| at == text).unwrap_or_else(|| panic!("{text}: {found:#?}"));
        assert_eq!(find("nmae").1, hint("name"));
        assert!(find("\"soon\"").0.contains("not a duration"));
        assert_eq!(find("-1").0, "expected a number greater than 0, found the number -1");
        assert_eq!(
            (find("client_atuh").0.as_str(), find("client_atuh").1.clone()),
            ("unknown key `client_atuh`", hint("client_auth"))
        );
        assert_eq!(find("\"1.1\"").0, "unknown value `1.1`");
        assert_eq!(find("\"tsl\"").1.as_deref(), Some("expected one of: tls, tcp, wss, ws, quic"));
        assert_eq!(find("7").0, "expected a string, found the number 7");
        assert!(find("\"ketama\"").0.contains("unknown value"));
        assert_eq!(find("rutime").1, hint("runtime"));
        assert!(found.iter().any(|(m, h, _)| m == "unknown key `wieght`" && *h == hint("weight")), "{found:#?}");
        assert_eq!(found.len(), 10, "{found:#?}");
    }

    #[test]
    fn a_key_that_cannot_be_read_is_not_missing_and_hides_no_other() {
        let (model, mut document) =
            Document::parse::<Model>(Path::new("p.toml"), "[[listener]]\nname = 5\n[[listener]]\nbind = \"b\"\n");
        assert_eq!(document.diagnostics.count(crate::config::Severity::Error), 1);
        for (listener, errors) in model.listener.iter().zip([1, 2]) {
            let _ = document.require::<()>(None, listener, "name", "");
            assert_eq!(document.diagnostics.count(crate::config::Severity::Error), errors);
        }
    }

    #[test]
    fn errors_name_the_table_of_a_key_and_the_item_of_a_list() {
        for (source, at, hint) in [
            ("[[listener]]\nrequire = []", "require", "it belongs to [listener.admit]"),
            ("[[listener]]\ncrl = []", "crl", "it belongs to [listener.tls]"),
            ("[[listener]]\n[listener.tls]\ncertificates = []", "certificates", "did you mean `certificate`?"),
            ("[[upstream]]\nweight = 2", "weight", "it belongs to [[upstream.servers]]"),
            ("[[listener]]\nfoo = []", "foo", "expected one of: name, bind, protocol"),
        ] {
            let found = messages(source);
            assert!(found[0].1.as_ref().is_some_and(|it| it.starts_with(hint)) && found[0].2 == at, "{found:#?}");
        }
        let found = messages("[[listener]]\nallow = [\"10.0.0.0/8\", \"x\", \"y\"]\n");
        assert_eq!(found.iter().map(|(.., at)| at.as_str()).collect::<Vec<_>>(), ["\"x\"", "\"y\""]);
        let found = messages("[listener]\nname = \"a\"\nbind = \"b\"\n[listener]\nname = \"a\"\nbind = \"b\"\n");
        assert_eq!(found.len(), 1, "{found:#?}");
    }

    #[test]
    fn a_secret_is_put_in_and_never_quoted() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("pw"), "hunter2\n").unwrap();
        let path = directory.path().join("p.toml");
        let read = |text: &str| Document::parse::<Model>(&path, text);
        let (model, document) = read("[[upstream]]\n[upstream.health]\npassword = '${FILE:pw}'\n");
        let password = model.upstream[0].health.password.as_ref().unwrap();
        assert_eq!(password.expose(), "hunter2");
        assert!(!format!("{model:?} {document:?}").contains("hunter2"));
        for wrong in ["[[listener]]\nconnect_timeout = '${FILE:pw}'", "[[upstream]]\nbalance = '${FILE:pw}'"] {
            let diagnostics = read(wrong).1.diagnostics;
            let text = diagnostics.render(false);
            assert!(diagnostics.has_errors() && !text.contains("hunter2"), "{text}");
        }
        assert!(read("[[listener]]\nname = '${ENV:PORTCULLIS_SURELY_UNSET}'").1.diagnostics.has_errors());
        assert!(read("[[listener]]\nname = '${HOME}'").1.diagnostics.has_errors());
    }

    #[test]
    fn syntax_errors_have_their_place() {
        let found = messages("[[listener]]\nname = \n");
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
