//! Counts -> which of them exceed their ceilings, and which ceilings can be lower.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use super::Figure;
use crate::report::number;

/// The ceilings of a file, by table and key.
pub(super) struct Ceilings {
    file: PathBuf,
    tables: BTreeMap<String, BTreeMap<String, f64>>,
}

/// What is to be said about counts, a line each.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Verdict {
    pub(super) failures: Vec<String>,
    pub(super) hints: Vec<String>,
}

impl Ceilings {
    pub(super) fn read(file: &Path) -> anyhow::Result<Self> {
        let text = fs::read_to_string(file).with_context(|| {
            format!("{}: run this in the root of the repository, or name the file by --ceilings", file.display())
        })?;
        let tables = toml::from_str(&text).with_context(|| file.display().to_string())?;
        Ok(Self { file: file.to_owned(), tables })
    }

    pub(super) fn judge(&self, figures: &[Figure]) -> Verdict {
        let (file, mut verdict) = (self.file.display(), Verdict::default());
        for figure in figures {
            let Figure { table, key, title, value } = figure;
            let what = format!("{table}, {title}: {}", precise(*value));
            match self.of(figure) {
                None => verdict.failures.push(format!("{what} has no ceiling. Add `{key}` to [{table}] of {file}")),
                Some(ceiling) if *value > ceiling => verdict.failures.push(format!(
                    "{what} exceeds its ceiling of {}. Ceilings only fall: find what has added work (--keep keeps traces and \
                     profiles), and do without it. If it has to be, raise `{key}` in [{table}] of {file}, and say there what it is for",
                    precise(ceiling)
                )),
                // Nobody halves the work without noticing; a tool whose output has changed counts nothing.
                Some(ceiling) if ceiling >= 1.0 && (value.is_nan() || *value < ceiling / 2.0) => verdict.failures.push(format!(
                    "{what} is less than half of its ceiling of {}. Either the counter is broken, or lower `{key}` in [{table}] \
                     of {file}",
                    precise(ceiling)
                )),
                // Of what is next to nothing, 10 % are chance.
                Some(ceiling) if ceiling - value > (ceiling / 10.0).max(0.2) => verdict.hints.push(format!(
                    "{what} is more than 10 % below its ceiling of {}. Lower `{key}` in [{table}] of {file}",
                    precise(ceiling)
                )),
                Some(_) => {}
            }
        }
        for (table, keys) in &self.tables {
            let is_counted = |key: &str| figures.iter().any(|figure| figure.table == table && figure.key == key);
            let unknown = keys.keys().filter(|key| !is_counted(key));
            verdict.failures.extend(unknown.map(|key| format!("`{key}` in [{table}] of {file}: nothing counts this")));
        }
        verdict
    }

    /// A table of counts and ceilings.
    pub(super) fn markdown(&self, figures: &[Figure]) -> String {
        let mut out = "| | | count | ceiling |\n| --- | --- | --- | --- |\n".to_owned();
        for figure in figures {
            let ceiling = self.of(figure).map(precise).unwrap_or_default();
            let (table, title) = (figure.table.replace('-', " "), figure.title);
            out += &format!("| {table} | {title} | {} | {ceiling} |\n", precise(figure.value));
        }
        out
    }

    fn of(&self, figure: &Figure) -> Option<f64> {
        self.tables.get(figure.table)?.get(figure.key).copied()
    }
}

/// With so many digits that a percent can be seen.
fn precise(value: f64) -> String {
    // What was subtracted may be a little too much.
    let value = if value.abs() < 0.005 { 0.0 } else { value };
    if value.abs() < 100.0 { format!("{value:.2}") } else { number(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(value: f64, ceiling: &str) -> Verdict {
        let tables = toml::from_str(ceiling).unwrap();
        let figure = Figure { table: "instructions", key: "ping", title: "PINGREQ", value };
        Ceilings { file: "ceilings.toml".into(), tables }.judge(&[figure])
    }

    #[test]
    fn only_what_exceeds_its_ceiling_fails() {
        let ceiling = "[instructions]\nping = 100";
        let above = judged(100.1, ceiling);
        assert!(above.hints.is_empty() && above.failures.len() == 1, "{above:?}");
        assert!(above.failures[0].starts_with("instructions, PINGREQ: 100 exceeds its ceiling of 100."), "{above:?}");
        assert_eq!(judged(100.0, ceiling), Verdict::default());
        assert_eq!(judged(90.0, ceiling), Verdict::default());
    }

    #[test]
    fn a_ceiling_that_is_too_high_is_a_hint() {
        let below = judged(89.0, "[instructions]\nping = 100");
        assert!(below.failures.is_empty() && below.hints.len() == 1, "{below:?}");
        assert_eq!(judged(0.0, "[instructions]\nping = 0.1"), Verdict::default());
    }

    #[test]
    fn a_counter_that_counts_nothing_fails() {
        for value in [0.0, 49.0, f64::NAN] {
            assert_eq!(judged(value, "[instructions]\nping = 100").failures.len(), 1, "{value}");
        }
    }

    #[test]
    fn counts_and_ceilings_belong_together() {
        assert_eq!(judged(1.0, "[instructions]\n").failures.len(), 1);
        assert_eq!(judged(1.0, "[instructions]\nping = 1\npong = 1").failures.len(), 1);
    }
}
