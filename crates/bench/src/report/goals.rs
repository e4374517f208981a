//! A goal and the medians of a figure -> what it refers to, and whether Portcullis meets it.

use super::{Line, Report};
use crate::peers::Peer;

/// What Portcullis is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most this share of Envoy's value.
    OfEnvoy(f64),
    /// At most this share of the lowest value of a rival.
    OfBest(f64),
    /// At most this value.
    AtMost(f64),
}

impl Report {
    /// `None`: no goal, or what it refers to has not been measured.
    pub(super) fn is_goal_met(&self, line: &Line) -> Option<bool> {
        let ours = self.spread(line, Peer::Portcullis)?.median;
        match line.figure.goal? {
            Goal::OfEnvoy(share) => Some(ours <= share * self.spread(line, Peer::Envoy)?.median),
            Goal::OfBest(share) => Some(ours <= share * self.best(line)?.1),
            Goal::AtMost(value) => Some(ours <= value),
        }
    }

    /// The rival with the lowest median, and that median.
    pub(super) fn best(&self, line: &Line) -> Option<(Peer, f64)> {
        let rivals = self.peers().filter(|peer| peer.is_rival());
        let medians = rivals.filter_map(|peer| Some((peer, self.spread(line, peer)?.median)));
        medians.min_by(|(_, one), (_, other)| one.total_cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Described, Figure, Machine};
    use super::*;

    static OF_BEST: Figure = Figure { key: "a", title: "a", unit: "b", goal: Some(Goal::OfBest(0.5)) };
    static OF_ENVOY: Figure = Figure { key: "e", title: "e", unit: "b", goal: Some(Goal::OfEnvoy(0.5)) };

    fn report(values: &[(Peer, f64)], figure: &'static Figure) -> Report {
        let described = |(peer, _): &(Peer, f64)| Described { peer: *peer, version: String::new() };
        let mut report = Report::new(Machine::default(), values.iter().map(described).collect());
        values.iter().for_each(|(peer, value)| report.add(*peer, figure, *value));
        report
    }

    #[test]
    fn only_rivals_set_goals() {
        let report = report(&[(Peer::Portcullis, 5.0), (Peer::Bare, 1.0), (Peer::Nginx, 10.0)], &OF_BEST);
        assert_eq!(report.best(&report.lines[0]), Some((Peer::Nginx, 10.0)));
        assert!(report.is_met());
    }

    #[test]
    fn a_goal_is_missed() {
        let report = report(&[(Peer::Portcullis, 5.1), (Peer::Nginx, 10.0)], &OF_BEST);
        assert!(!report.is_met());
    }

    #[test]
    fn without_its_reference_a_goal_is_not_judged() {
        let report = report(&[(Peer::Portcullis, 5.0), (Peer::Nginx, 1.0)], &OF_ENVOY);
        assert_eq!(report.is_goal_met(&report.lines[0]), None);
        assert!(report.is_met());
    }

    #[test]
    fn work_that_fails_misses_the_goals() {
        let mut report = report(&[(Peer::Portcullis, 5.0), (Peer::Nginx, 10.0)], &OF_BEST);
        report.add_failure(Peer::Nginx, "storm".to_owned(), "refused".to_owned());
        assert!(report.is_met());
        report.add_failure(Peer::Portcullis, "storm".to_owned(), "refused".to_owned());
        assert!(!report.is_met());
    }
}
