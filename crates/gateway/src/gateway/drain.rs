//! How a gateway stops: its sessions end one after another, so that their clients do not all connect again at once.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use rand::seq::SliceRandom;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until, timeout};

use super::Handle;
use crate::config::tables::Process;
use crate::outcome::CloseReason;
use crate::sessions::SessionEntry;

/// The time between two groups of sessions that end.
const STEP: Duration = Duration::from_millis(50);
/// From this age on, it does not matter how old a session is.
const SETTLED: Duration = Duration::from_secs(2);
/// How long sessions may take to send DISCONNECT after the drain timeout.
const STOP_TIMEOUT: Duration = Duration::from_secs(3);
/// How long the closing and draining periods of connections over QUIC are awaited [RFC 9000, 10.2].
const CLOSE_TIMEOUT: Duration = Duration::from_millis(500);
/// How long what is left may take to be dropped.
const ABORT_TIMEOUT: Duration = Duration::from_secs(1);

/// Who serves clients that connect again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Successor {
    /// Other gateways, if there are any.
    Others,
    /// Another process, on the same listening sockets.
    Process,
}

impl Handle {
    /// Stops accepting connections, and ends all sessions, at `drain_pace` or one after another within `drain_timeout`. With a
    /// process that has taken the listening sockets over, there is no hurry: without `drain_pace`, sessions go on for half of that
    /// time.
    pub async fn drain(&self, successor: Successor) {
        self.stop_accepting();
        let runtime = self.0.shared.runtime.load_full();
        let (sessions, limit) = (&self.0.shared.state.sessions, runtime.process.drain_timeout);
        sessions.set_drain_notice(runtime.process.drain_notice.clone());
        let mut all = sessions.all();
        all.shuffle(&mut rand::rng());
        // The youngest come last: they are not established, or publish and leave.
        let now = std::time::Instant::now();
        let age = |session: &Arc<SessionEntry>| now.saturating_duration_since(session.info.opened).min(SETTLED);
        all.sort_by_key(|session| Reverse(age(session)));
        let schedule = Schedule::new(&runtime.process, successor, all.len());
        if schedule.end(all.len()) > limit {
            tracing::warn!(
                sessions = all.len(),
                needed = %humantime::format_duration(Duration::from_secs(schedule.end(all.len()).as_secs())),
                drain_timeout = %humantime::format_duration(limit),
                "at `drain_pace`, the sessions take longer than `drain_timeout`: what is left then ends at once"
            );
        }
        let ending = async {
            let begin = Instant::now();
            let mut steps = interval(STEP);
            steps.set_missed_tick_behavior(MissedTickBehavior::Skip);
            tokio::select! {
                () = sleep_until(begin + schedule.wait) => {}
                () = self.0.tasks.wait() => return,
            }
            let begin = Instant::now();
            let mut rest = all.as_slice();
            while !rest.is_empty() {
                tokio::select! {
                    () = self.0.tasks.wait() => return,
                    _ = steps.tick() => {}
                }
                let due = schedule.due(begin.elapsed()).saturating_sub(all.len() - rest.len()).min(rest.len());
                let (now, later) = rest.split_at(due);
                for session in now {
                    session.end(CloseReason::Drained);
                }
                rest = later;
            }
            self.0.tasks.wait().await;
        };
        if timeout(limit, ending).await.is_err() {
            let connections = self.connections();
            tracing::warn!(connections, drain_timeout = %humantime::format_duration(limit), "drain_timeout is over: what is left ends at once");
            return self.stop().await;
        }
        self.closed().await;
    }

    /// Closes all sessions immediately. Each still writes its access log line.
    pub async fn stop(&self) {
        self.stop_accepting();
        let runtime = self.0.shared.runtime.load_full();
        self.0.shared.state.sessions.set_drain_notice(runtime.process.drain_notice.clone());
        self.0.shared.state.sessions.drain();
        if timeout(STOP_TIMEOUT, self.0.tasks.wait()).await.is_err() {
            let _ = timeout(ABORT_TIMEOUT, self.0.shared.relays.abort()).await;
        }
        self.closed().await;
    }

    fn stop_accepting(&self) {
        self.0.draining.cancel();
        let mut closing = self.0.closing.lock();
        for (key, socket) in self.0.sockets.lock().drain() {
            socket.acceptor.refuse_clients();
            closing.push((key, Arc::clone(&socket.acceptor)));
        }
        closing.retain(|(_, acceptor)| acceptor.has_connections());
        drop(closing);
        self.0.tasks.close();
    }

    /// Waits until clients over QUIC have been sent that their connections are closed: over TCP, the system does that.
    async fn closed(&self) {
        let closing = std::mem::take(&mut *self.0.closing.lock());
        let _ = timeout(CLOSE_TIMEOUT, join_all(closing.iter().map(|(_, acceptor)| acceptor.closed()))).await;
    }
}

/// When sessions end: so many in so much time, after a wait.
#[derive(Debug, PartialEq, Eq)]
struct Schedule {
    wait: Duration,
    sessions: u64,
    per: Duration,
}

impl Schedule {
    fn new(process: &Process, successor: Successor, sessions: usize) -> Self {
        let limit = process.drain_timeout;
        match (process.drain_pace, successor) {
            (Some(pace), _) => Self { wait: Duration::ZERO, sessions: pace.amount, per: pace.per },
            (None, Successor::Others) => Self::within(Duration::ZERO, limit, sessions),
            (None, Successor::Process) => Self::within(limit / 2, limit, sessions),
        }
    }

    /// So that the last session has time to end until `limit`. Few sessions do not take all of it.
    fn within(wait: Duration, limit: Duration, sessions: usize) -> Self {
        let quick = STEP.saturating_mul(u32::try_from(sessions).unwrap_or(u32::MAX));
        let per = limit.saturating_sub(wait + 2 * STEP).min(quick);
        Self { wait, sessions: sessions as u64, per }
    }

    /// When the last session ends, if there are so many.
    fn end(&self, sessions: usize) -> Duration {
        let nanos = self.per.as_nanos().saturating_mul(sessions as u128) / u128::from(self.sessions.max(1));
        self.wait.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// How many have ended after this time. The first ends at once.
    fn due(&self, elapsed: Duration) -> usize {
        let per = self.per.as_nanos().max(1);
        let due = (elapsed.as_nanos() * u128::from(self.sessions)) / per + 1;
        usize::try_from(due).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tables::Rate;

    #[test]
    fn sessions_end_evenly_or_at_the_pace_that_is_set() {
        let second = Duration::from_secs(1);
        let mut process = Process { drain_timeout: 30 * second, ..Process::default() };
        let others = Schedule::new(&process, Successor::Others, 3000);
        assert_eq!(others.due(Duration::ZERO), 1);
        assert!((1500..1520).contains(&others.due(15 * second)), "{}", others.due(15 * second));
        assert!(others.due(Duration::from_millis(29_950)) > 3000, "the last one has time to end");
        let replaced = Schedule::new(&process, Successor::Process, 3000);
        assert_eq!(replaced.wait, 15 * second);
        assert!(replaced.due(Duration::from_millis(14_950)) > 3000);
        assert_eq!(Schedule::new(&process, Successor::Others, 2).due(STEP), 2, "two sessions do not take 30 s");
        process.drain_pace = Some(Rate { amount: 120, per: 60 * second, burst: 2 });
        for successor in [Successor::Others, Successor::Process] {
            let paced = Schedule::new(&process, successor, 3000);
            assert_eq!((paced.wait, paced.due(Duration::ZERO), paced.due(10 * second)), (Duration::ZERO, 1, 21));
            assert_eq!(paced.end(3000), 1500 * second);
        }
        process.drain_timeout = Duration::ZERO;
        process.drain_pace = None;
        assert!(Schedule::new(&process, Successor::Others, 3000).due(STEP) > 3000);
    }
}
