//! A goal and the values of a figure -> what it refers to, and whether Portcullis meets it.

use super::{Line, Report};
use crate::peers::Peer;

/// What Portcullis is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Goal {
    /// At most this share of Envoy's value.
    OfEnvoy(f64),
    /// At most this share of what the rival needs that needs the least.
    OfBest(f64),
    /// At most this value.
    AtMost(f64),
}

/// What became of a goal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    Missed,
    /// What it refers to has no value, and was not asked for.
    NotAsked,
    /// What it refers to was asked for, and has no value: nobody can say that the goal is met.
    NoReference,
}

impl Verdict {
    /// Whether the run may succeed with it.
    pub(super) fn is_fine(self) -> bool {
        matches!(self, Self::Met | Self::NotAsked)
    }
}

impl Report {
    /// `None`: no goal, or Portcullis has no value.
    pub(super) fn verdict(&self, line: &Line) -> Option<Verdict> {
        let ours = self.spread(line, Peer::Portcullis)?.median;
        let (value, limit, is_asked) = match line.figure.goal? {
            Goal::OfEnvoy(share) => {
                (self.ratio(line, Peer::Envoy), share, self.peers().any(|peer| peer == Peer::Envoy))
            }
            Goal::OfBest(share) => (self.best(line).map(|(_, ratio)| ratio), share, self.peers().any(Peer::is_rival)),
            Goal::AtMost(limit) => (Some(ours), limit, false),
        };
        Some(match value {
            Some(value) if value <= limit => Verdict::Met,
            Some(_) => Verdict::Missed,
            None if is_asked => Verdict::NoReference,
            None => Verdict::NotAsked,
        })
    }

    /// The rival that comes closest to Portcullis, and the [ratio](Self::ratio) to it.
    pub(super) fn best(&self, line: &Line) -> Option<(Peer, f64)> {
        let rivals = self.peers().filter(|peer| peer.is_rival());
        let ratios = rivals.filter_map(|peer| Some((peer, self.ratio(line, peer)?)));
        ratios.max_by(|(_, one), (_, other)| one.total_cmp(other))
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
        values.iter().for_each(|(peer, value)| report.add(*peer, figure, 1, *value));
        report
    }

    #[test]
    fn only_rivals_set_goals() {
        let report = report(&[(Peer::Portcullis, 5.0), (Peer::Bare, 1.0), (Peer::Nginx, 10.0)], &OF_BEST);
        assert_eq!(report.best(&report.lines[0]), Some((Peer::Nginx, 0.5)));
        assert!(report.is_met());
    }

    #[test]
    fn medians_are_compared() {
        let mut report = report(&[(Peer::Portcullis, 4.0), (Peer::Nginx, 10.0), (Peer::Envoy, 20.0)], &OF_BEST);
        // One peer has no value in the second round.
        report.add(Peer::Portcullis, &OF_BEST, 2, 9.0);
        report.add(Peer::Nginx, &OF_BEST, 2, 20.0);
        report.add(Peer::Portcullis, &OF_BEST, 3, 3.0);
        report.add(Peer::Nginx, &OF_BEST, 3, 5.0);
        report.add(Peer::Envoy, &OF_BEST, 3, 12.0);
        let line = &report.lines[0];
        assert_eq!((report.ratio(line, Peer::Nginx), report.ratio(line, Peer::Envoy)), (Some(0.4), Some(0.25)));
        assert_eq!(report.best(line), Some((Peer::Nginx, 0.4)));
    }

    #[test]
    fn a_goal_is_missed() {
        let report = report(&[(Peer::Portcullis, 5.1), (Peer::Nginx, 10.0)], &OF_BEST);
        assert!(!report.is_met());
    }

    #[test]
    fn a_reference_that_was_not_asked_for_does_not_fail_the_run() {
        let of_envoy = report(&[(Peer::Portcullis, 5.0), (Peer::Nginx, 1.0)], &OF_ENVOY);
        assert_eq!(of_envoy.verdict(&of_envoy.lines[0]), Some(Verdict::NotAsked));
        assert!(of_envoy.is_met());
        let of_best = report(&[(Peer::Portcullis, 5.0), (Peer::Bare, 10.0)], &OF_BEST);
        assert_eq!(of_best.verdict(&of_best.lines[0]), Some(Verdict::NotAsked));
        assert!(of_best.is_met());
    }

    #[test]
    fn a_reference_that_was_asked_for_and_has_no_value_does() {
        for (figure, peer) in [(&OF_ENVOY, Peer::Envoy), (&OF_BEST, Peer::Nginx)] {
            let asked = [Peer::Portcullis, peer].map(|peer| Described { peer, version: String::new() });
            let mut report = Report::new(Machine::default(), asked.into());
            report.add(Peer::Portcullis, figure, 1, 5.0);
            assert_eq!(report.verdict(&report.lines[0]), Some(Verdict::NoReference));
            assert!(!report.is_met());
            report.add(peer, figure, 1, 10.0);
            assert_eq!(report.verdict(&report.lines[0]), Some(Verdict::Met));
            assert!(report.is_met());
        }
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
