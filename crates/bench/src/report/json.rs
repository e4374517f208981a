//! A report -> JSON with the values of each round, for programs.

use serde_json::{Map, Value, json};

use super::{Line, Machine, Report, Verdict};

pub(super) fn of(report: &Report) -> anyhow::Result<String> {
    let Machine { cpu, cores, kernel, date, rounds } = &report.machine;
    let versions: Map<_, _> = report.peers.iter().map(|it| (it.peer.title().to_owned(), json!(it.version))).collect();
    let failure = |it: &super::Failure| json!({ "row": it.row, "peer": it.peer.title(), "cause": it.cause });
    let document = json!({
        "machine": { "cpu": cpu, "cores": cores, "kernel": kernel },
        "date": date,
        "rounds": rounds,
        "versions": versions,
        "figures": report.lines.iter().map(|line| figure(report, line)).collect::<Vec<_>>(),
        "failures": report.failures.iter().map(failure).collect::<Vec<_>>(),
        "is_met": report.is_met(),
    });
    Ok(serde_json::to_string_pretty(&document)? + "\n")
}

fn figure(report: &Report, line: &Line) -> Value {
    let values: Map<_, _> =
        report.peers().zip(&line.values).map(|(peer, values)| (peer.title().to_owned(), by_round(values))).collect();
    let is_goal_met = match report.verdict(line) {
        Some(Verdict::Met) => Some(true),
        Some(Verdict::Missed) => Some(false),
        Some(Verdict::NotAsked | Verdict::NoReference) | None => None,
    };
    json!({
        "key": line.figure.key,
        "title": line.figure.title,
        "unit": line.figure.unit,
        "values": values,
        "is_goal_met": is_goal_met,
    })
}

fn by_round(values: &[(usize, f64)]) -> Value {
    values.iter().map(|(round, value)| (round.to_string(), json!(value))).collect::<Map<_, _>>().into()
}
