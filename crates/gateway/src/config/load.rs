//! From a file to [`Config`]: secrets put in, every problem of grammar found, not only the first.
//!
//! serde stops at the first thing it cannot read. So the file is parsed into a tree with places once, and when serde
//! stops, the entry it stopped at is noted, taken out of the tree, and serde is asked again.

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeArray, DeTable, DeValue};

use super::model::Config;
use super::problem::Problems;

/// A configuration file as typed.
#[derive(Debug)]
pub struct Document {
    /// What it says; only of use if there are no errors among the problems.
    pub config: Config,
    /// What is wrong with it so far.
    pub problems: Problems,
    directory: PathBuf,
    /// The places of values that something from outside the file was put into.
    substituted: Vec<Range<usize>>,
    /// Keys whose values could not be read, and so seem to be missing.
    unread: Vec<String>,
}

/// A file has that many problems at most before nobody reads on.
const MAX_PROBLEMS: usize = 50;
/// No configuration is larger; a device node or a log given by mistake is.
const MAX_FILE_LEN: u64 = 4 << 20;

impl Document {
    /// Reads a file. What cannot be read is among the problems.
    pub fn read(path: &Path) -> Self {
        match read_text(path) {
            Ok(source) => Self::parse(path, &source),
            Err(error) => {
                let mut problems = Problems::new(path, String::new());
                problems.file_error(format!("cannot be read: {error}"));
                Self {
                    config: Config::default(),
                    problems,
                    directory: directory_of(path),
                    substituted: Vec::new(),
                    unread: Vec::new(),
                }
            }
        }
    }

    /// Reads text as if it stood in a file at `path`.
    pub fn parse(path: &Path, source: &str) -> Self {
        let mut problems = Problems::new(path, source.to_owned());
        let directory = directory_of(path);
        let (mut tree, errors) = DeTable::parse_recoverable(source);
        for error in &errors {
            problems.error(&error.span().unwrap_or(0..0), error.message());
        }
        // Behind a syntax error the tree is a guess: what else it is said to lack would only mislead.
        let (mut config, mut substituted, mut unread) = (Config::default(), Vec::new(), Vec::new());
        if errors.is_empty() {
            substituted = Substitution::run(&mut tree, &directory, &mut problems);
            config = deserialize(tree, &substituted, &mut unread, &mut problems);
        }
        Self { config, problems, directory, substituted, unread }
    }

    /// Says that the table at `span` lacks a key; not of a key whose value was there and has been complained of.
    pub(crate) fn missing(&mut self, span: &Range<usize>, key: &str, hint: &str) {
        if !self.unread.iter().any(|unread| unread == key) {
            self.problems.error(span, format!("`{key}` is missing")).hint(hint);
        }
    }

    /// Whether something from outside the file, a secret perhaps, was put into the value at `span`.
    pub fn is_substituted(&self, span: &Range<usize>) -> bool {
        self.substituted.iter().any(|place| overlap(place, span))
    }

    /// A path in the file, relative to the file's directory.
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.directory.join(path)
    }
}

fn directory_of(path: &Path) -> PathBuf {
    path.parent().map(Path::to_owned).unwrap_or_default()
}

fn read_text(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(MAX_FILE_LEN + 1).read_to_string(&mut text)?;
    if text.len() as u64 > MAX_FILE_LEN {
        return Err(std::io::Error::other("larger than 4 MiB, which no configuration is"));
    }
    Ok(text)
}

fn deserialize(
    mut tree: Spanned<DeTable<'_>>,
    substituted: &[Range<usize>],
    unread: &mut Vec<String>,
    problems: &mut Problems,
) -> Config {
    for _ in 0..MAX_PROBLEMS {
        let error = match Config::deserialize(toml::de::Deserializer::from(tree.clone())) {
            Ok(config) => return config,
            Err(error) => error,
        };
        let span = error.span().unwrap_or(0..0);
        if substituted.iter().any(|secret| overlap(secret, &span)) {
            // serde quotes the value it cannot read, and this one came from outside the file: it may be a secret.
            problems.error(&span, "the value that is put in here does not fit");
        } else {
            report(&error, &span, problems);
        }
        let tree_span = tree.span();
        if !take_out(tree.get_mut(), &span, unread) && span == tree_span {
            break;
        }
    }
    Config::default()
}

/// Says in a user's words what serde says in its own.
fn report(error: &toml::de::Error, span: &Range<usize>, problems: &mut Problems) {
    let message = error.message();
    let mut quoted = message.split('`').skip(1).step_by(2);
    let known: Vec<&str> = quoted.clone().skip(1).collect();
    let kind = ["unknown field", "unknown variant"].into_iter().find(|kind| message.starts_with(kind));
    let (Some(kind), Some(found)) = (kind, quoted.next()) else {
        problems.error(span, message);
        return;
    };
    let what = if kind == "unknown field" { "unknown key" } else { "unknown value" };
    let problem = problems.error(span, format!("{what} `{found}`"));
    if let Some(suggestion) = suggest(found, known.iter().copied()) {
        problem.hint(format!("did you mean `{suggestion}`?"));
    } else if !known.is_empty() {
        problem.hint(format!("known here: {}", known.join(", ")));
    }
}

/// The candidate that is most like `found`, if one is like it at all.
pub(crate) fn suggest<'a>(found: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .into_iter()
        // One slip of the fingers in a short word, or a word that begins and goes on much the same.
        .filter(|candidate| {
            strsim::jaro_winkler(found, candidate) > 0.8 || strsim::osa_distance(found, candidate) <= found.len() / 3
        })
        .map(|candidate| (strsim::jaro_winkler(found, candidate), candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Takes the innermost entry that covers `span` out of the tree, and notes its key; whether there was one.
fn take_out(table: &mut DeTable<'_>, span: &Range<usize>, unread: &mut Vec<String>) -> bool {
    let covers = |outer: Range<usize>| outer.start <= span.start && span.end <= outer.end;
    let entry = table.iter_mut().find_map(|(key, value)| {
        let is_inside = covers(value.span()) && value.span() != *span && take_out_value(value, span, unread);
        (is_inside || covers(key.span()) || covers(value.span())).then(|| (key.clone(), is_inside))
    });
    match entry {
        Some((key, false)) => {
            unread.push(key.get_ref().to_string());
            table.remove(&key).is_some()
        }
        Some((_, true)) => true,
        // A table in several pieces has the span of its header alone: its entries lie outside it.
        None => table.iter_mut().any(|(_, value)| take_out_value(value, span, unread)),
    }
}

fn take_out_value(value: &mut Spanned<DeValue<'_>>, span: &Range<usize>, unread: &mut Vec<String>) -> bool {
    match value.get_mut() {
        DeValue::Table(table) => take_out(table, span, unread),
        DeValue::Array(items) => {
            if items.iter_mut().any(|item| item.span() != *span && take_out_value(item, span, unread)) {
                return true;
            }
            let Some(at) = items.iter().position(|item| overlap(&item.span(), span)) else { return false };
            let mut left = DeArray::new();
            items.iter().enumerate().filter(|(place, _)| *place != at).for_each(|(_, item)| left.push(item.clone()));
            *items = left;
            true
        }
        _ => false,
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}

/// Puts `${ENV:NAME}` and `${FILE:path}` into strings.
struct Substitution<'a> {
    directory: &'a Path,
    problems: &'a mut Problems,
    places: Vec<Range<usize>>,
}

impl Substitution<'_> {
    /// Substitutes in the whole tree; returns the places where something was put in.
    fn run(tree: &mut Spanned<DeTable<'_>>, directory: &Path, problems: &mut Problems) -> Vec<Range<usize>> {
        let mut this = Substitution { directory, problems, places: Vec::new() };
        for (_, value) in tree.get_mut().iter_mut() {
            this.walk(value);
        }
        this.places
    }

    fn walk(&mut self, value: &mut Spanned<DeValue<'_>>) {
        let span = value.span();
        match value.get_mut() {
            DeValue::Table(table) => table.iter_mut().for_each(|(_, value)| self.walk(value)),
            DeValue::Array(items) => items.iter_mut().for_each(|value| self.walk(value)),
            DeValue::String(text) if text.contains("${") => match self.expand(&span, text) {
                Ok(expanded) => {
                    *text = Cow::Owned(expanded);
                    self.places.push(span);
                }
                Err(message) => {
                    self.problems.error(&span, message).hint("known are ${ENV:NAME} and ${FILE:path}");
                }
            },
            _ => {}
        }
    }

    fn expand(&mut self, span: &Range<usize>, text: &str) -> Result<String, String> {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, reference)) = rest.split_once("${") {
            let (reference, behind) = reference.split_once('}').ok_or("`${` without `}`")?;
            out.push_str(before);
            out.push_str(&match reference.split_once(':') {
                Some(("ENV", name)) => {
                    std::env::var(name).map_err(|_| format!("the environment has no text variable `{name}`"))?
                }
                Some(("FILE", path)) => {
                    let path = self.directory.join(path);
                    let text = read_text(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                    if crate::config::is_exposed(&path) {
                        let message = format!("everybody on this machine can read the secret in {}", path.display());
                        self.problems.warning(span, message).hint(format!("chmod 600 {}", path.display()));
                    }
                    text.trim_end_matches(['\r', '\n']).to_owned()
                }
                _ => return Err(format!("`${{{reference}}}` cannot be put in")),
            });
            rest = behind;
        }
        out.push_str(rest);
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(source: &str) -> Vec<(String, Option<String>, String)> {
        let document = Document::parse(Path::new("p.toml"), source);
        let of = |span: &Option<Range<usize>>| span.clone().map(|span| source[span].to_owned()).unwrap_or_default();
        document.problems.list().iter().map(|p| (p.message.clone(), p.hint.clone(), of(&p.span))).collect()
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
            |place: &str| found.iter().find(|(.., at)| at == place).unwrap_or_else(|| panic!("{place}: {found:#?}"));
        assert_eq!(find("nmae").1, hint("name"));
        assert!(find("\"soon\"").0.contains("no period of time"));
        assert!(find("-1").0.contains("invalid value"));
        assert_eq!(
            (find("client_atuh").0.as_str(), find("client_atuh").1.clone()),
            ("unknown key `client_atuh`", hint("client_auth"))
        );
        assert_eq!(find("\"1.1\"").0, "unknown value `1.1`");
        assert_eq!(find("\"tsl\"").1, hint("tls"));
        assert!(find("7").0.contains("string"), "{found:#?}");
        assert!(find("\"ketama\"").0.contains("unknown value"));
        assert_eq!(find("rutime").1, hint("runtime"));
        assert!(found.iter().any(|(m, h, _)| m == "unknown key `wieght`" && *h == hint("weight")), "{found:#?}");
        assert_eq!(found.len(), 10, "{found:#?}");
    }

    #[test]
    fn keys_of_protocols_to_come_are_unknown() {
        for protocol in ["ws", "wss", "quic"] {
            let found = messages(&format!("[[listener]]\nprotocol = \"{protocol}\""));
            assert_eq!(found[0].0, format!("unknown value `{protocol}`"));
        }
        for (table, key) in [("[[listener]]", "proxy_protocol"), ("[[upstream]]", "proxy_protocol")] {
            let found = messages(&format!("{table}\n{key} = []"));
            assert_eq!((found.len(), found[0].0.as_str()), (1, format!("unknown key `{key}`").as_str()), "{table}");
        }
    }

    #[test]
    fn a_secret_is_put_in_and_never_quoted() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("pw"), "hunter2\n").unwrap();
        let path = directory.path().join("p.toml");
        let read = |text: &str| Document::parse(&path, text);
        let document = read("[[upstream]]\n[upstream.health]\npassword = '${FILE:pw}'\n");
        let password = document.config.upstream[0].health.password.as_ref().unwrap();
        assert_eq!(password.expose(), "hunter2");
        assert!(!format!("{document:?}").contains("hunter2"));
        for wrong in ["[[listener]]\nconnect_timeout = '${FILE:pw}'", "[[upstream]]\nbalance = '${FILE:pw}'"] {
            let problems = read(wrong).problems;
            assert!(problems.has_errors() && !problems.render(false).contains("hunter2"), "{}", problems.render(false));
        }
        assert!(read("[[listener]]\nname = '${ENV:PORTCULLIS_SURELY_UNSET}'").problems.has_errors());
        assert!(read("[[listener]]\nname = '${HOME}'").problems.has_errors());
    }

    #[test]
    fn syntax_errors_have_their_place() {
        let found = messages("[[listener]]\nname = \n");
        assert_eq!(found.len(), 1, "{found:?}");
    }
}
