//! A plain table of two columns: medians over all rounds, and their ratio.

use super::spread::Spread;

/// Measurements by row and column.
pub(crate) struct Table {
    columns: [&'static str; 2],
    rows: Vec<(&'static str, [Vec<f64>; 2])>,
}

impl Table {
    pub(crate) fn new(columns: [&'static str; 2]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &'static str, column: usize, value: f64) {
        let at = self.rows.iter().position(|(known, _)| *known == name).unwrap_or_else(|| {
            self.rows.push((name, [Vec::new(), Vec::new()]));
            self.rows.len() - 1
        });
        self.rows[at].1[column].push(value);
    }

    /// Markdown: medians with minimum and maximum, and the ratio of the first column to the second.
    pub(crate) fn markdown(&self) -> String {
        let [first, second] = self.columns;
        let mut out = format!("| work | {first} | {second} | ratio |\n| --- | --- | --- | --- |\n");
        for (name, values) in &self.rows {
            if let [Some(first), Some(second)] = [&values[0], &values[1]].map(|it| Spread::of(it)) {
                out += &format!("| {name} | {first} | {second} | {:.2} |\n", first.median / second.median);
            }
        }
        out
    }
}
