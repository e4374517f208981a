//! Costs by size -> a table, and a page of plots.

use super::spread::number;
use super::svg;

/// What one thing costs as it grows.
pub(crate) struct Family {
    /// What grows.
    of: &'static str,
    curves: Vec<Curve>,
}

struct Curve {
    title: &'static str,
    unit: &'static str,
    /// Size and cost.
    points: Vec<(f64, f64)>,
}

/// In pixels: a panel, and the plot in it.
const PANEL: (f64, f64) = (300.0, 220.0);
const COLUMNS: usize = 3;
const LEFT: f64 = 20.0;
const TOP: f64 = 64.0;
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 110.0;
/// Costs that differ by more than this factor have a logarithmic scale.
const LINEAR: f64 = 8.0;

impl Family {
    pub(crate) const fn new(of: &'static str) -> Self {
        Self { of, curves: Vec::new() }
    }

    pub(crate) fn add(&mut self, title: &'static str, unit: &'static str, size: usize, cost: f64) {
        eprintln!("  {title}: {} {unit}", number(cost));
        let at = self.curves.iter().position(|curve| curve.title == title).unwrap_or_else(|| {
            self.curves.push(Curve { title, unit, points: Vec::new() });
            self.curves.len() - 1
        });
        self.curves[at].points.push((size as f64, cost));
    }

    pub(crate) fn markdown(&self) -> String {
        let titles: Vec<String> = self.curves.iter().map(|it| format!("{}, {}", it.title, it.unit)).collect();
        let mut out = format!("| {} | {} |\n| --- |{}\n", self.of, titles.join(" | "), " --- |".repeat(titles.len()));
        let sizes = self.curves.first().map_or(&[][..], |curve| &curve.points);
        for (n, (size, _)) in sizes.iter().enumerate() {
            let cell = |curve: &Curve| curve.points.get(n).map_or_else(|| "–".to_owned(), |(_, cost)| number(*cost));
            let cells: Vec<String> = self.curves.iter().map(cell).collect();
            out += &format!("| {} | {} |\n", text(*size), cells.join(" | "));
        }
        out
    }

    /// A panel for each cost. Sizes have a logarithmic scale; a cost that grows with them has one, too, so that it is a straight
    /// line.
    pub(crate) fn plot(families: &[Self]) -> String {
        let mut panels = String::new();
        let mut row = 0;
        for family in families {
            for (n, curve) in family.curves.iter().enumerate() {
                let (x, y) = ((n % COLUMNS) as f64 * PANEL.0, (row + n / COLUMNS) as f64 * PANEL.1);
                panels += &format!("<g transform=\"translate({x:.0} {y:.0})\">\n{}</g>\n", curve.panel(family.of));
            }
            row += family.curves.len().div_ceil(COLUMNS);
        }
        svg::page(PANEL.0 * COLUMNS as f64, PANEL.1 * row as f64, "How costs grow (lower is better)", &panels)
    }
}

impl Curve {
    fn panel(&self, of: &str) -> String {
        let costs = || self.points.iter().map(|(_, cost)| *cost);
        let (low, high) = (costs().fold(f64::MAX, f64::min), costs().fold(0.0, f64::max));
        let is_log = low > 0.0 && high / low > LINEAR;
        let across = Scale::log(self.points.iter().map(|(size, _)| *size));
        let up =
            if is_log { Scale::log(costs()) } else { Scale { begin: 0.0, end: high.max(f64::MIN_POSITIVE), is_log } };
        let at =
            |&(size, cost): &(f64, f64)| (LEFT + across.share(size) * WIDTH, TOP + (1.0 - up.share(cost)) * HEIGHT);
        let places: Vec<String> = self.points.iter().map(at).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let kind = if is_log { ", logarithmic" } else { "" };
        let (bottom, right) = (TOP + HEIGHT, LEFT + WIDTH);
        let mut out = format!(
            r#"<text class="title" x="{LEFT}" y="24">{}</text>
<text x="{LEFT}" y="42">{}{kind}</text>
<polyline class="axis" points="{LEFT},{TOP} {LEFT},{bottom} {right},{bottom}"/>
<polyline class="curve" points="{}"/>
"#,
            self.title,
            self.unit,
            places.join(" ")
        );
        for (n, point) in self.points.iter().enumerate() {
            let (x, y) = at(point);
            let anchor = if n == 0 {
                "start"
            } else if n + 1 == self.points.len() {
                "end"
            } else {
                "middle"
            };
            out += &format!(
                r#"<circle class="ours" cx="{x:.1}" cy="{y:.1}" r="3.5"/>
<text x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>
<text class="small" x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>
"#,
                y - 8.0,
                number(point.1),
                bottom + 16.0,
                text(point.0)
            );
        }
        out + &format!(
            "<text class=\"small\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{of}</text>\n",
            bottom + 31.0
        )
    }
}

/// A number of things.
fn text(size: f64) -> String {
    number(size).trim_end_matches(".0").to_owned()
}

struct Scale {
    begin: f64,
    end: f64,
    is_log: bool,
}

impl Scale {
    fn log(values: impl Iterator<Item = f64>) -> Self {
        let (begin, end) = values.fold((f64::MAX, 0.0), |(low, high), it| (f64::min(low, it), f64::max(high, it)));
        Self { begin, end, is_log: true }
    }

    /// Where a value is, from 0 to 1.
    fn share(&self, value: f64) -> f64 {
        if self.end <= self.begin {
            return 0.0;
        }
        if self.is_log {
            (value / self.begin).ln() / (self.end / self.begin).ln()
        } else {
            (value - self.begin) / (self.end - self.begin)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_with_the_size_is_a_straight_line() {
        let scale = Scale::log([10.0, 1000.0].into_iter());
        let shares = [10.0, 100.0, 1000.0].map(|value| scale.share(value));
        assert!(shares.iter().zip([0.0, 0.5, 1.0]).all(|(one, other)| (one - other).abs() < 1e-9), "{shares:?}");
    }

    #[test]
    fn costs_are_listed_by_size() {
        let mut family = Family::new("rules");
        for (size, cost) in [(10, 1.5), (1000, 150.0)] {
            family.add("start", "ms", size, cost);
        }
        assert_eq!(family.markdown(), "| rules | start, ms |\n| --- | --- |\n| 10 | 1.50 |\n| 1,000 | 150 |\n");
    }
}
