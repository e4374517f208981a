//! The values of a figure -> a plot in SVG: a bar for each peer's median, whiskers from minimum to maximum.

use super::spread::{Spread, number};
use super::{Line, Report, svg};
use crate::peers::Peer;

/// In pixels.
const WIDTH: f64 = 720.0;
const BAR_BEGIN: f64 = 220.0;
const BAR_LEN: f64 = 400.0;
const ROW_HEIGHT: f64 = 28.0;
const BAR_HEIGHT: f64 = 18.0;
const HEAD: f64 = 44.0;

/// `None` if nobody has a value.
pub(super) fn of(report: &Report, line: &Line) -> Option<String> {
    let spreads: Vec<(Peer, Spread)> =
        report.peers().filter_map(|peer| Some((peer, report.spread(line, peer)?))).collect();
    let longest = spreads.iter().map(|(_, it)| it.max).fold(0.0, f64::max);
    if longest <= 0.0 {
        return None;
    }
    let height = HEAD + ROW_HEIGHT * spreads.len() as f64 + 8.0;
    let title = format!("{}, {}", line.figure.title, line.figure.unit);
    let mut out = format!("<text class=\"title\" x=\"16\" y=\"26\">{title} (lower is better)</text>\n");
    for (n, (peer, spread)) in spreads.iter().enumerate() {
        out += &row(HEAD + ROW_HEIGHT * n as f64, *peer, spread, BAR_LEN / longest);
    }
    Some(svg::page(WIDTH, height, &title, &out))
}

/// The bar of a peer, `y` pixels below the top, with `scale` pixels a unit.
fn row(y: f64, peer: Peer, spread: &Spread, scale: f64) -> String {
    let middle = y + BAR_HEIGHT / 2.0;
    let baseline = middle + 4.5;
    let class = match peer {
        Peer::Portcullis => "ours",
        peer if peer.is_rival() => "bar",
        _ => "aside",
    };
    // A difference may be below zero: latency, when it is noise.
    let at = |value: f64| BAR_BEGIN + value.max(0.0) * scale;
    let (low, end, high) = (at(spread.min), at(spread.median), at(spread.max));
    let mut out = format!(
        r#"<text x="{:.1}" y="{baseline:.1}" text-anchor="end">{}</text>
<rect class="{class}" x="{BAR_BEGIN:.1}" y="{y:.1}" width="{:.1}" height="{BAR_HEIGHT:.1}"/>
<line class="whisker" x1="{low:.1}" y1="{middle:.1}" x2="{high:.1}" y2="{middle:.1}"/>
"#,
        BAR_BEGIN - 8.0,
        peer.title(),
        end - BAR_BEGIN,
    );
    for x in [low, high] {
        let (top, bottom) = (middle - 4.0, middle + 4.0);
        out += &format!(r#"<line class="whisker" x1="{x:.1}" y1="{top:.1}" x2="{x:.1}" y2="{bottom:.1}"/>"#);
        out += "\n";
    }
    out += &format!(r#"<text x="{:.1}" y="{baseline:.1}">{}</text>"#, high.max(end) + 8.0, number(spread.median));
    out + "\n"
}
