//! A report -> tables in Markdown: the machine, all values, the goals, what failed, and the peers.

use super::spread::number;
use super::{Goal, Line, Machine, Report, Verdict};
use crate::peers::Peer;

pub(super) fn of(report: &Report) -> String {
    let parts = [head(&report.machine), values(report), goals(report), failures(report), peers(report)];
    let parts: Vec<String> = parts.into_iter().filter(|part| !part.is_empty()).collect();
    parts.join("\n")
}

fn head(machine: &Machine) -> String {
    format!(
        "{machine} Medians of {} rounds, with minimum and maximum; lower is better. A ratio is that of the medians.\n",
        machine.rounds
    )
}

fn values(report: &Report) -> String {
    let titles: Vec<&str> = report.peers().map(Peer::title).collect();
    let mut out = format!("| work | {} |\n| --- |{}\n", titles.join(" | "), " --- |".repeat(titles.len()));
    for line in &report.lines {
        let cell = |peer| report.spread(line, peer).map_or_else(|| "–".to_owned(), |it| it.to_string());
        let cells: Vec<String> = report.peers().map(cell).collect();
        out += &format!("| {}, {} | {} |\n", line.figure.title, line.figure.unit, cells.join(" | "));
    }
    out
}

fn goals(report: &Report) -> String {
    let has_baseline = report.peers().any(|peer| peer == Peer::Baseline);
    let mut out = String::new();
    for line in &report.lines {
        let Some(ours) = report.spread(line, Peer::Portcullis) else { continue };
        let text = |ratio: Option<f64>| ratio.map_or_else(|| "–".to_owned(), |it| format!("{it:.2}"));
        let of = |peer| text(report.ratio(line, peer));
        let best = report.best(line);
        let best_value =
            best.and_then(|(peer, _)| Some(format!("{}, {}", peer.title(), number(report.spread(line, peer)?.median))));
        let mut cells = vec![
            line.figure.title.to_owned(),
            number(ours.median),
            best_value.unwrap_or_else(|| "–".to_owned()),
            text(best.map(|(_, ratio)| ratio)),
            of(Peer::Envoy),
            goal(line),
            verdict(report, line).to_owned(),
        ];
        if has_baseline {
            cells.push(of(Peer::Baseline));
        }
        out += &format!("| {} |\n", cells.join(" | "));
    }
    if out.is_empty() {
        return out;
    }
    let (title, rule) = if has_baseline { (" of the baseline |", " --- |") } else { ("", "") };
    format!(
        "| work | Portcullis | best peer | of the best | of Envoy | goal | met |{title}\n| --- | --- | --- | --- | --- | --- | --- \
         |{rule}\n{out}"
    )
}

fn goal(line: &Line) -> String {
    match line.figure.goal {
        Some(Goal::OfEnvoy(share)) => format!("{share} of Envoy"),
        Some(Goal::OfBest(share)) => format!("{share} of the best"),
        Some(Goal::AtMost(value)) => format!("{} {}", number(value), line.figure.unit),
        None => String::new(),
    }
}

fn verdict(report: &Report, line: &Line) -> &'static str {
    match report.verdict(line) {
        Some(Verdict::Met) => "yes",
        Some(Verdict::Missed) => "**no**",
        Some(Verdict::NotAsked) => "no reference",
        Some(Verdict::NoReference) => "**no reference**",
        None => "",
    }
}

fn failures(report: &Report) -> String {
    let item = |it: &super::Failure| format!("- {}, {}: {}\n", it.row, it.peer.title(), it.cause);
    let items: String = report.failures.iter().map(item).collect();
    if items.is_empty() { items } else { format!("Measurements without a result:\n\n{items}") }
}

fn peers(report: &Report) -> String {
    let mut out = "| peer | version | differs from the others |\n| --- | --- | --- |\n".to_owned();
    for it in &report.peers {
        out += &format!("| {} | {} | {} |\n", it.peer.title(), it.version, it.peer.lacks());
    }
    out
}
