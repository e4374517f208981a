//! Problems of a configuration, collected and shown all together.

use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The configuration cannot be used.
    Error,
    /// Legal, but probably not meant, or unsafe.
    Warning,
}

/// One thing that is wrong, or unwise, in a configuration.
#[derive(Clone, Debug)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// What it is, in a few words.
    pub message: String,
    /// Its place in the file, in bytes; `None` for the file as a whole.
    pub span: Option<Range<usize>>,
    /// What to do about it.
    pub hint: Option<String>,
    /// The line has a secret in it: only its place is shown.
    pub hides_line: bool,
}

/// What is wrong with a value, said by code that does not know where the value was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// What it is, in a few words.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl Complaint {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The problems of one file, in the order they were found.
#[derive(Clone, Debug, Default)]
pub struct Problems {
    path: PathBuf,
    source: String,
    list: Vec<Problem>,
}

impl Problems {
    pub(crate) fn new(path: &Path, source: String) -> Self {
        Self { path: path.to_owned(), source, list: Vec::new() }
    }

    /// Adds an error; a hint may be added to what is returned.
    pub(crate) fn error(&mut self, span: &Range<usize>, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Error, Some(span.clone()), message.into())
    }

    /// The place of a part of a string value: within its quotes, if it is written without escapes, else all of it.
    pub(crate) fn inside(&self, value: &Range<usize>, text: &str, part: Range<usize>) -> Range<usize> {
        match self.source.get(value.clone()).and_then(|written| written.find(text)) {
            Some(quote) => value.start + quote + part.start..value.start + quote + part.end,
            None => value.clone(),
        }
    }

    /// Adds what other code says of the value at `span`, as an error.
    pub(crate) fn complain(&mut self, span: &Range<usize>, complaint: Complaint) -> &mut Problem {
        let problem = self.error(span, complaint.message);
        problem.hint = complaint.hint;
        problem
    }

    /// Adds a warning; a hint may be added to what is returned.
    pub(crate) fn warning(&mut self, span: &Range<usize>, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Warning, Some(span.clone()), message.into())
    }

    /// Adds an error about the file as a whole.
    pub(crate) fn file_error(&mut self, message: impl Into<String>) -> &mut Problem {
        self.push(Severity::Error, None, message.into())
    }

    fn push(&mut self, severity: Severity, span: Option<Range<usize>>, message: String) -> &mut Problem {
        self.list.push(Problem { severity, message, span, hint: None, hides_line: false });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }

    /// All of them.
    pub fn list(&self) -> &[Problem] {
        &self.list
    }

    /// All of them, one line each, for a log.
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.list.iter().map(|problem| self.line(problem))
    }

    fn line(&self, problem: &Problem) -> String {
        let hint = problem.hint.as_ref().map(|hint| format!(" ({hint})")).unwrap_or_default();
        self.placed(problem) + &hint
    }

    /// File, line, column and message.
    fn placed(&self, problem: &Problem) -> String {
        let mut line = self.path.display().to_string();
        if let Some(span) = &problem.span {
            let before = &self.source[..span.start.min(self.source.len())];
            let row = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            line += &format!(":{row}:{column}");
        }
        line + &format!(": {}", problem.message)
    }

    /// How many there are of one severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.list.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Whether one of them is an error.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// The file they are of.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of them in the order of the file, each with file, line, column, the line itself and the hint; with colour if
    /// `is_terminal`.
    pub fn render(&self, is_terminal: bool) -> String {
        let renderer = if is_terminal { Renderer::styled() } else { Renderer::plain() };
        let path = self.path.display().to_string();
        let mut texts = Vec::new();
        let mut list: Vec<&Problem> = self.list.iter().collect();
        list.sort_by_key(|problem| problem.span.as_ref().map_or(0, |span| span.start));
        for problem in list {
            let level = match problem.severity {
                Severity::Error => Level::ERROR,
                Severity::Warning => Level::WARNING,
            };
            let title = level.clone().primary_title(problem.message.as_str());
            let mut groups = vec![match &problem.span {
                Some(_) if problem.hides_line => Group::with_title(level.primary_title(self.placed(problem))),
                Some(span) => title.element(
                    Snippet::source(self.source.as_str())
                        .path(path.as_str())
                        .annotation(AnnotationKind::Primary.span(self.visible(span))),
                ),
                None => Group::with_title(level.primary_title(format!("{path}: {}", problem.message))),
            }];
            if let Some(hint) = &problem.hint {
                groups.push(Group::with_title(Level::HELP.with_name("hint").secondary_title(hint.as_str())));
            }
            texts.push(renderer.render(&groups));
        }
        texts.join("\n\n")
    }

    /// A span that shows one line at most, of a table its header.
    fn visible(&self, span: &Range<usize>) -> Range<usize> {
        let start = span.start.min(self.source.len());
        let end = span.end.clamp(start, self.source.len());
        let line_end = self.source[start..end].find('\n').map_or(end, |at| start + at);
        start..line_end
    }
}

impl Problem {
    /// Keeps the line from being shown: there is a secret in it.
    pub(crate) fn hide_line(&mut self) -> &mut Self {
        self.hides_line = true;
        self
    }

    /// Says what to do about it.
    pub(crate) fn hint(&mut self, hint: impl Into<String>) -> &mut Self {
        self.hint = Some(hint.into());
        self
    }
}

/// The errors, for a log.
impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let errors = self.list.iter().filter(|problem| problem.severity == Severity::Error);
        f.write_str(&errors.map(|problem| self.line(problem)).collect::<Vec<_>>().join("; "))
    }
}

impl std::error::Error for Problems {}
