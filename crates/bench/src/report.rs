//! The table of results: medians over all rounds.

/// Measurements by row and column.
pub(crate) struct Report {
    columns: Vec<&'static str>,
    rows: Vec<(&'static str, Vec<Vec<f64>>)>,
}

impl Report {
    pub(crate) fn new(columns: impl Into<Vec<&'static str>>) -> Self {
        Self { columns: columns.into(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &'static str, column: usize, value: f64) {
        if !self.rows.iter().any(|(known, _)| *known == name) {
            self.rows.push((name, vec![Vec::new(); self.columns.len()]));
        }
        if let Some((_, row)) = self.rows.iter_mut().find(|(known, _)| *known == name) {
            row[column].push(value);
        }
    }

    /// Markdown: medians with minimum and maximum, and the ratio of the first column to the second.
    pub(crate) fn table(&self) -> String {
        let mut out = format!(
            "| work | {} | ratio |\n| --- |{} --- |\n",
            self.columns.join(" | "),
            " --- |".repeat(self.columns.len())
        );
        for (name, row) in &self.rows {
            let sorted: Vec<Vec<f64>> = row
                .iter()
                .map(|values| {
                    let mut values = values.clone();
                    values.sort_by(f64::total_cmp);
                    values
                })
                .collect();
            let median = |values: &[f64]| values.get(values.len() / 2).copied().unwrap_or(f64::NAN);
            let cell = |values: &Vec<f64>| {
                let at = |index: usize| values.get(index).copied().unwrap_or(f64::NAN);
                let [middle, low, high] = [median(values), at(0), at(values.len().wrapping_sub(1))].map(number);
                format!("{middle} ({low} to {high})")
            };
            let cells: Vec<String> = sorted.iter().map(cell).collect();
            let ratio = median(&sorted[0]) / median(&sorted[1]);
            out += &format!("| {name} | {} | {ratio:.2} |\n", cells.join(" | "));
        }
        out
    }
}

fn number(value: f64) -> String {
    if value < 100.0 { format!("{value:.2}") } else { format!("{value:.0}") }
}
