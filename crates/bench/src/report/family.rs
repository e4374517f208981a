//! Costs by size -> a table, and a page of plots. All costs have a linear scale from 0: what is the same for all sizes is a
//! horizontal line, and what grows in proportion to the size is a straight one.

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
    kind: Kind,
    /// Size and cost.
    points: Vec<(f64, f64)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The cost of one operation, best the same whatever the size. Sizes have a logarithmic scale.
    Each,
    /// The cost of everything that has grown, best in proportion to the size. Sizes have a linear scale.
    Total,
}

/// In pixels: a panel, and the plot in it.
const PANEL: (f64, f64) = (320.0, 226.0);
const COLUMNS: usize = 3;
const LEFT: f64 = 52.0;
const TOP: f64 = 64.0;
const WIDTH: f64 = 240.0;
const HEIGHT: f64 = 110.0;
/// Between the labels of two points, at least.
const LABEL: f64 = 64.0;

impl Family {
    pub(crate) const fn new(of: &'static str) -> Self {
        Self { of, curves: Vec::new() }
    }

    /// What one operation costs at this size.
    pub(crate) fn add(&mut self, title: &'static str, unit: &'static str, size: usize, cost: f64) {
        self.push(title, unit, Kind::Each, size, cost);
    }

    /// What this size costs as a whole.
    pub(crate) fn add_total(&mut self, title: &'static str, unit: &'static str, size: usize, cost: f64) {
        self.push(title, unit, Kind::Total, size, cost);
    }

    fn push(&mut self, title: &'static str, unit: &'static str, kind: Kind, size: usize, cost: f64) {
        eprintln!("  {title}: {} {unit}", number(cost));
        let at = self.curves.iter().position(|curve| curve.title == title).unwrap_or_else(|| {
            self.curves.push(Curve { title, unit, kind, points: Vec::new() });
            self.curves.len() - 1
        });
        self.curves[at].points.push((size as f64, cost));
    }

    /// A row for each size, and what each more costs from one size to the next.
    pub(crate) fn markdown(&self) -> String {
        let titles: Vec<String> = self.curves.iter().map(|it| format!("{}, {}", it.title, it.unit)).collect();
        let mut out = format!("| {} | {} |\n| --- |{}\n", self.of, titles.join(" | "), " --- |".repeat(titles.len()));
        let sizes = self.curves.first().map_or(&[][..], |curve| &curve.points);
        for (n, (size, _)) in sizes.iter().enumerate() {
            let cell = |curve: &Curve| curve.points.get(n).map_or_else(|| "–".to_owned(), |(_, cost)| number(*cost));
            let cells: Vec<String> = self.curves.iter().map(cell).collect();
            out += &format!("| {} | {} |\n", text(*size), cells.join(" | "));
        }
        let slopes: Vec<String> = self.curves.iter().filter_map(Curve::slopes).collect();
        if !slopes.is_empty() {
            out += &format!("\nEach more, from one size to the next: {}.\n", slopes.join("; "));
        }
        out
    }

    /// A panel for each cost.
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
    /// What each more adds to a total. The same from each size to the next: the cost is a straight line.
    fn slopes(&self) -> Option<String> {
        let (factor, unit) = finer(self.unit);
        let slope = |pair: &[(f64, f64)]| number((pair[1].1 - pair[0].1) / (pair[1].0 - pair[0].0) * factor);
        let slopes: Vec<String> = self.points.windows(2).map(slope).collect();
        (self.kind == Kind::Total && !slopes.is_empty()).then(|| format!("{} {} {unit}", self.title, slopes.join(", ")))
    }

    fn panel(&self, of: &str) -> String {
        let (first, last) = (self.points[0].0, self.points[self.points.len() - 1].0);
        let across = |size: f64| match self.kind {
            _ if last <= first => 0.0,
            Kind::Each => (size / first).ln() / (last / first).ln(),
            Kind::Total => size / last,
        };
        let highest = self.points.iter().map(|(_, cost)| *cost).fold(f64::MIN_POSITIVE, f64::max);
        let at = |&(size, cost): &(f64, f64)| (LEFT + across(size) * WIDTH, TOP + (1.0 - cost / highest) * HEIGHT);
        let places: Vec<(f64, f64)> = self.points.iter().map(at).collect();
        let line = |places: &[(f64, f64)]| {
            let places: Vec<String> = places.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            places.join(" ")
        };
        let (bottom, right, tick) = (TOP + HEIGHT, LEFT + WIDTH, LEFT - 6.0);
        let mut out = format!(
            r#"<text class="title" x="{LEFT}" y="24">{}</text>
<text class="small" x="{LEFT}" y="40">{}</text>
<polyline class="axis" points="{LEFT},{TOP} {LEFT},{bottom} {right},{bottom}"/>
<text class="small" x="{tick}" y="{:.1}" text-anchor="end">{}</text>
<text class="small" x="{tick}" y="{bottom}" text-anchor="end">0</text>
"#,
            self.title,
            self.unit,
            TOP + 4.0,
            number(highest),
        );
        if self.kind == Kind::Total {
            // Whatever leaves it is not in proportion.
            let straight = [places[0], places[places.len() - 1]];
            out += &format!("<polyline class=\"straight\" points=\"{}\"/>\n", line(&straight));
        }
        out += &format!("<polyline class=\"curve\" points=\"{}\"/>\n", line(&places));
        // The greatest first: of sizes that are too near to each other, they have the labels.
        let mut labelled = f64::INFINITY;
        for ((x, y), (size, cost)) in places.iter().zip(&self.points).rev() {
            out += &format!("<circle class=\"ours\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\"/>\n");
            if labelled - x < LABEL {
                continue;
            }
            labelled = *x;
            let anchor = if x + LABEL / 2.0 > right {
                "end"
            } else if x - LABEL / 2.0 < LEFT {
                "start"
            } else {
                "middle"
            };
            out += &format!(
                r#"<text x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>
<text class="small" x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{}</text>
"#,
                y - 8.0,
                number(*cost),
                bottom + 16.0,
                text(*size)
            );
        }
        let scale = if self.kind == Kind::Each { ", logarithmic" } else { "" };
        out + &format!(
            "<text class=\"small\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{of}{scale}</text>\n",
            bottom + 31.0
        )
    }
}

/// A number of things.
fn text(size: f64) -> String {
    number(size).trim_end_matches(".0").to_owned()
}

/// The unit of what one of many costs, and how many of it are one of the whole's.
fn finer(unit: &'static str) -> (f64, &'static str) {
    match unit {
        "s" => (1e6, "µs"),
        "ms" => (1e6, "ns"),
        "MiB" => (f64::from(1 << 20), "bytes"),
        _ => (1.0, unit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn family(costs: [(usize, f64); 3]) -> Family {
        let mut family = Family::new("rules");
        for (size, cost) in costs {
            family.add_total("start", "ms", size, cost);
            family.add("connect", "µs", size, 5.0);
        }
        family
    }

    #[test]
    fn costs_are_listed_by_size_with_what_each_more_costs() {
        let costs = family([(10, 1.5), (1000, 150.0), (2000, 151.0)]);
        let table = "| rules | start, ms | connect, µs |\n| --- | --- | --- |\n| 10 | 1.50 | 5.00 |\n\
                     | 1,000 | 150 | 5.00 |\n| 2,000 | 151 | 5.00 |\n\n\
                     Each more, from one size to the next: start 150,000, 1,000 ns.\n";
        assert_eq!(costs.markdown(), table);
    }

    #[test]
    fn what_is_in_proportion_is_on_the_straight_line_and_what_is_the_same_is_flat() {
        let plot = Family::plot(&[family([(10, 1.0), (500, 50.0), (1000, 100.0)])]);
        // 110 pixels high, 240 wide; the second panel has a logarithmic scale of sizes.
        assert!(plot.contains(r#"class="curve" points="54.4,172.9 172.0,119.0 292.0,64.0""#), "{plot}");
        assert!(plot.contains(r#"class="straight" points="54.4,172.9 292.0,64.0""#), "{plot}");
        assert!(plot.contains(r#"class="curve" points="52.0,64.0 255.9,64.0 292.0,64.0""#), "{plot}");
    }
}
