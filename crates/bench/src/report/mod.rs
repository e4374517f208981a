//! The report. Enters: figures, by peer and round. Leaves: tables, plots, JSON, and whether the goals are met.

mod family;
mod goals;
mod json;
mod machine;
mod markdown;
mod plot;
mod spread;
mod svg;
mod table;
mod write;

use std::path::Path;

use crate::peers::Peer;
pub(crate) use family::Family;
pub(crate) use goals::Goal;
use goals::Verdict;
pub(crate) use machine::Machine;
pub(crate) use spread::{Spread, number};
pub(crate) use table::Table;
pub(crate) use write::{Plot, write_block};

/// Something that is measured.
#[derive(Debug)]
pub(crate) struct Figure {
    /// Its name in files.
    pub(crate) key: &'static str,
    pub(crate) title: &'static str,
    pub(crate) unit: &'static str,
    /// What Portcullis is to reach.
    pub(crate) goal: Option<Goal>,
}

/// Everything that a run has found.
pub(crate) struct Report {
    pub(crate) machine: Machine,
    peers: Vec<Described>,
    lines: Vec<Line>,
    failures: Vec<Failure>,
}

/// A peer, and the version that its program has printed.
pub(crate) struct Described {
    pub(crate) peer: Peer,
    pub(crate) version: String,
}

/// The values of one figure.
struct Line {
    figure: &'static Figure,
    /// In the order of the peers: a value for each round, with its number. A round may be missing.
    values: Vec<Vec<(usize, f64)>>,
}

/// A measurement that has no result.
struct Failure {
    peer: Peer,
    row: String,
    cause: String,
}

impl Report {
    pub(crate) fn new(machine: Machine, peers: Vec<Described>) -> Self {
        Self { machine, peers, lines: Vec::new(), failures: Vec::new() }
    }

    pub(crate) fn add(&mut self, peer: Peer, figure: &'static Figure, round: usize, value: f64) {
        let columns = self.peers.len();
        let at = self.lines.iter().position(|line| line.figure.key == figure.key).unwrap_or_else(|| {
            self.lines.push(Line { figure, values: vec![Vec::new(); columns] });
            self.lines.len() - 1
        });
        if let Some(column) = self.peers.iter().position(|it| it.peer == peer) {
            self.lines[at].values[column].push((round, value));
        }
    }

    pub(crate) fn add_failure(&mut self, peer: Peer, row: String, cause: String) {
        self.failures.push(Failure { peer, row, cause });
    }

    /// Whether Portcullis has done all the work and met each goal. A goal whose reference was not asked for does not count.
    pub(crate) fn is_met(&self) -> bool {
        let is_ours = |failure: &Failure| failure.peer == Peer::Portcullis;
        !self.failures.iter().any(is_ours)
            && self.lines.iter().all(|line| self.verdict(line).is_none_or(Verdict::is_fine))
    }

    /// All tables in Markdown.
    pub(crate) fn markdown(&self) -> String {
        markdown::of(self)
    }

    /// All values of all rounds.
    pub(crate) fn json(&self) -> anyhow::Result<String> {
        json::of(self)
    }

    /// Writes tables between the markers of a document, and plots beside it.
    pub(crate) fn write(&self, document: &Path) -> anyhow::Result<()> {
        let plot = |line: &Line| {
            let (name, title) = (line.figure.key.to_owned(), line.figure.title.to_owned());
            Some(Plot { name, title, svg: plot::of(self, line)? })
        };
        let plots: Vec<Plot> = self.lines.iter().filter_map(plot).collect();
        write_block(document, "measurements", &self.markdown(), &plots)
    }

    /// The median, minimum and maximum of a peer; `None` if it has not been measured.
    fn spread(&self, line: &Line, peer: Peer) -> Option<Spread> {
        let values: Vec<f64> = self.values(line, peer)?.iter().map(|(_, value)| *value).collect();
        Spread::of(&values)
    }

    /// What Portcullis needs, as a share of what `peer` needs: the ratio of their medians.
    fn ratio(&self, line: &Line, peer: Peer) -> Option<f64> {
        Some(self.spread(line, Peer::Portcullis)?.median / self.spread(line, peer)?.median)
    }

    fn values<'a>(&self, line: &'a Line, peer: Peer) -> Option<&'a [(usize, f64)]> {
        let column = self.peers.iter().position(|it| it.peer == peer)?;
        Some(&line.values[column])
    }

    fn peers(&self) -> impl Iterator<Item = Peer> {
        self.peers.iter().map(|it| it.peer)
    }
}
