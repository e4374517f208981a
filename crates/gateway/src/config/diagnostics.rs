//! Collects the diagnostics of a configuration file and renders them for a terminal or a log. A line that contains a
//! secret is never shown.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{Annotation, AnnotationKind, Group, Level, Renderer, Snippet};

use super::secrets;
use super::values::{Located, Location, Secret, Setting};

/// The severity of a diagnostic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// Legal, but probably a mistake, or unsafe.
    Warning,
}

/// A problem with a value, and how to fix it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What is wrong, in one line.
    pub message: String,
    /// How to fix it.
    pub hint: Option<String>,
    /// The line contains a secret: only its position may be shown.
    hides_line: bool,
}

impl Complaint {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, hides_line: false }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Shows only the position, because the line contains a secret.
    pub(crate) const fn hide_line(mut self) -> Self {
        self.hides_line = true;
        self
    }
}

impl From<&str> for Complaint {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<String> for Complaint {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

/// Proof that an error was reported. Only [`Diagnostics`] can make it, so a function that returns it cannot fail
/// silently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reported(());

/// A complaint with its location in the file.
#[derive(Clone, Debug)]
pub struct Diagnostic {
    /// Whether the configuration can still be used.
    pub severity: Severity,
    /// The problem and its hint.
    pub complaint: Complaint,
    /// Byte range in the file; `None`: the file as a whole.
    pub(super) span: Option<Range<usize>>,
}

/// Warns if users other than the owner and the group of a file can read it. `what` names the secret in it.
pub(crate) fn warn_if_exposed(at: &impl Located, path: &Path, what: &str, diagnostics: &mut Diagnostics) {
    use std::os::unix::fs::PermissionsExt;
    if std::fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & 0o007 != 0) {
        let complaint = Complaint::new(format!("every user of this machine can read {what} {}", path.display()));
        diagnostics.warning(at, complaint.hint(format!("chmod 600 {}", path.display())));
    }
}

/// The problems of one file, in the order in which they were found.
#[derive(Clone, Debug, Default)]
pub struct Diagnostics {
    path: PathBuf,
    source: String,
    list: Vec<Diagnostic>,
    substitutions: Vec<Substituted>,
}

/// A value that `${ENV:...}` or `${FILE:...}` inserted. It may be a secret, so no message shows it.
#[derive(Clone, Debug)]
struct Substituted {
    /// The string of the file that it became a part of.
    at: Location,
    value: Secret,
}

impl Diagnostics {
    pub(super) fn new(path: &Path, source: String) -> Self {
        Self { path: path.to_owned(), source, list: Vec::new(), substitutions: Vec::new() }
    }

    /// Records that `value` was inserted into the string at `at`, or is what became of that string: messages will not show it.
    pub(super) fn substituted(&mut self, at: Location, value: &str) {
        self.substitutions.push(Substituted { at, value: Secret::new(value) });
    }

    /// Whether a substitution was inserted within `span`.
    pub(super) fn has_substitution(&self, span: &Range<usize>) -> bool {
        self.substitutions.iter().any(|it| overlap(&it.at.0, span))
    }

    /// Reports a problem that makes the configuration unusable.
    pub(crate) fn error(&mut self, at: &(impl Located + ?Sized), complaint: impl Into<Complaint>) -> Reported {
        self.push(Severity::Error, at.location().cloned(), complaint.into());
        Reported(())
    }

    /// Reports a setting that is legal, but probably a mistake, or unsafe.
    pub(crate) fn warning(&mut self, at: &impl Located, complaint: impl Into<Complaint>) {
        self.push(Severity::Warning, at.location().cloned(), complaint.into());
    }

    /// Reports an error in a part of a string value; `part` is a byte range of the string.
    pub(crate) fn error_within(
        &mut self,
        setting: &Setting<String>,
        part: Range<usize>,
        complaint: impl Into<Complaint>,
    ) -> Reported {
        let location = setting.location.as_ref().map(|location| self.within(location, &setting.value, part));
        self.push(Severity::Error, location, complaint.into());
        Reported(())
    }

    /// Reports an error in one string of a list.
    pub(super) fn error_in_list(
        &mut self,
        list: &impl Located,
        item: &str,
        complaint: impl Into<Complaint>,
    ) -> Reported {
        let location = list.location().map(|list| self.within(list, &format!("\"{item}\""), 0..item.len() + 2));
        self.push(Severity::Error, location, complaint.into());
        Reported(())
    }

    /// The proof that something was reported; if nothing was, reports `complaint`.
    pub(crate) fn already_reported_or(&mut self, at: &impl Located, complaint: Complaint) -> Reported {
        if self.has_errors() { Reported(()) } else { self.error(at, complaint) }
    }

    /// The proof for a consequence of an error that was reported before.
    pub(super) fn already_reported(&self) -> Reported {
        debug_assert!(self.has_errors(), "nothing was reported");
        Reported(())
    }

    /// Reports an error of the file as a whole.
    pub(super) fn file_error(&mut self, complaint: impl Into<Complaint>) -> Reported {
        self.push(Severity::Error, None, complaint.into());
        Reported(())
    }

    /// The location of a part of a string value. If the file writes the value with escapes: of the whole value.
    fn within(&self, value: &Location, text: &str, part: Range<usize>) -> Location {
        match self.source.get(value.0.clone()).and_then(|written| written.find(text)) {
            Some(quote) => Location(value.0.start + quote + part.start..value.0.start + quote + part.end),
            None => value.clone(),
        }
    }

    fn push(&mut self, severity: Severity, location: Option<Location>, mut complaint: Complaint) {
        complaint.message = self.redact(without_os_code(complaint.message), location.as_ref());
        complaint.hint = complaint.hint.map(|hint| self.redact(hint, location.as_ref()));
        let span = location.map(|location| location.0);
        // A key that is there in each of several tables is reported for each of them, at one place.
        if !self.list.iter().any(|known| known.span == span && known.complaint == complaint) {
            self.list.push(Diagnostic { severity, complaint, span });
        }
    }

    /// Masks each word of a message that shows an inserted value, or that contains one, such as a path. At the location of
    /// the value, also each quoted word that is a part of it, such as the host of a URL.
    fn redact(&self, text: String, location: Option<&Location>) -> String {
        if self.substitutions.is_empty() {
            return text;
        }
        let is_secret = |word: &str, is_quoted: bool| {
            self.substitutions.iter().any(|Substituted { at, value }| {
                let is_here = location.is_some_and(|location| overlap(&at.0, &location.0));
                let mut parts = value.expose().split(is_separator).filter(|part| !part.is_empty());
                parts.any(|part| match part.len() {
                    LONG.. => {
                        word.contains(part) || (is_here && is_quoted && word.len() >= LONG && part.contains(word))
                    }
                    _ => is_here && word == part,
                })
            })
        };
        let (mut redacted, mut quotes) = (String::with_capacity(text.len()), 0);
        for piece in text.split_inclusive(is_separator) {
            let word = piece.trim_end_matches(is_separator);
            redacted.push_str(if is_secret(word, quotes % 2 == 1) { "***" } else { word });
            quotes += piece.matches(['`', '"']).count();
            redacted.push_str(&piece[word.len()..]);
        }
        redacted
    }

    /// All diagnostics, in the order in which they were found.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// All diagnostics for a log, one line each.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|diagnostic| self.line(diagnostic))
    }

    fn line(&self, diagnostic: &Diagnostic) -> String {
        let hint = diagnostic.complaint.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.locate(diagnostic) + &hint
    }

    /// File, line, column and message.
    fn locate(&self, diagnostic: &Diagnostic) -> String {
        let mut line = self.path.display().to_string();
        if let Some(span) = &diagnostic.span {
            let start = span.start.min(self.source.len());
            let column = self.source[..start].chars().rev().take_while(|c| *c != '\n').count() + 1;
            line += &format!(":{}:{column}", self.row(start));
        }
        line + &format!(": {}", diagnostic.complaint.message)
    }

    /// The number of diagnostics of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|diagnostic| diagnostic.severity == severity).count()
    }

    /// Whether at least one diagnostic is an error.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// The configuration file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Renders all diagnostics in the order of the file, each with file, line, column, the line itself and the hint.
    /// Uses colour if `is_terminal`.
    pub fn render(&self, is_terminal: bool) -> String {
        let renderer = if is_terminal { Renderer::styled() } else { Renderer::plain() };
        let path = self.path.display().to_string();
        let mut texts = Vec::new();
        let mut list: Vec<&Diagnostic> = self.list.iter().collect();
        list.sort_by_key(|diagnostic| diagnostic.span.as_ref().map_or(0, |span| span.start));
        for diagnostic in list {
            let level = match diagnostic.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let title = level.clone().primary_title(diagnostic.complaint.message.as_str());
            let mut groups = vec![match &diagnostic.span {
                Some(span)
                    if diagnostic.complaint.hides_line || secrets::may_be_in(&self.source, self.first_line(span)) =>
                {
                    Group::with_title(level.primary_title(self.locate(diagnostic)))
                }
                Some(span) => title.element(self.snippet(span).path(path.as_str())),
                None => Group::with_title(level.primary_title(format!("{path}: {}", diagnostic.complaint.message))),
            }];
            if let Some(hint) = &diagnostic.complaint.hint {
                groups.push(Group::with_title(Level::HELP.with_name("hint").secondary_title(hint.as_str())));
            }
            texts.push(renderer.render(&groups));
        }
        texts.join("\n\n")
    }

    /// The first line of a span: of a table, only the header is shown. The renderer gets no other line, because it reads all
    /// that it gets for each diagnostic.
    fn snippet(&self, span: &Range<usize>) -> Snippet<'_, Annotation<'_>> {
        let start = span.start.min(self.source.len());
        let line = self.first_line(span);
        let visible = start - line.start..span.end.clamp(start, line.end) - line.start;
        Snippet::source(&self.source[line])
            .line_start(self.row(start))
            .annotation(AnnotationKind::Primary.span(visible))
    }

    fn first_line(&self, span: &Range<usize>) -> Range<usize> {
        let start = span.start.min(self.source.len());
        let line_start = self.source[..start].rfind('\n').map_or(0, |at| at + 1);
        line_start..self.source[start..].find('\n').map_or(self.source.len(), |at| start + at)
    }

    /// Whether a key belongs to a table. The location of a table under a header is the header.
    pub(super) fn is_within(&self, key: &Range<usize>, table: &Location) -> bool {
        overlap(key, &table.0)
            || self.source.get(table.0.end..key.start).is_some_and(|between| !between.contains("\n["))
    }

    /// The number of the line of an item, from 1; 0: it is not in the file.
    pub(super) fn line_of(&self, item: &impl Located) -> usize {
        item.location().map_or(0, |location| self.row(location.0.start.min(self.source.len())))
    }

    /// The number of the line that contains this byte, from 1.
    fn row(&self, at: usize) -> usize {
        self.source[..at].bytes().filter(|byte| *byte == b'\n').count() + 1
    }
}

/// The errors, for a log.
impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.list.iter().filter(|diagnostic| diagnostic.severity == Severity::Error);
        f.write_str(&errors.map(|diagnostic| self.line(diagnostic)).collect::<Vec<_>>().join("; "))
    }
}

impl std::error::Error for Diagnostics {}

/// A message without the number that the standard library appends to errors of the operating system.
fn without_os_code(message: String) -> String {
    match message.split_once(" (os error ") {
        Some((before, after)) => before.to_owned() + after.split_once(')').map_or("", |(_, after)| after),
        None => message,
    }
}

/// Words of messages with at least so many bytes are compared with parts of inserted values; shorter ones only as a whole.
const LONG: usize = 3;

/// What separates the words of a message: it quotes values in backticks.
fn is_separator(c: char) -> bool {
    c.is_whitespace() || matches!(c, '`' | '"' | '\'')
}

pub(super) fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start < b.end && b.start < a.end
}
