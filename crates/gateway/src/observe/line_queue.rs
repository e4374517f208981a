//! Lines that wait for a disk or a pipe. Enters: whole lines. Leaves: the same lines, written by a thread. A writer never
//! waits: if more than [`MAX_BYTES`] wait, further lines are dropped and counted.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::escape::Escaping;

/// The limit of what waits, in bytes. Clients choose the length of lines, so a limit of lines would not bound memory.
const MAX_BYTES: usize = 16 << 20;
/// What a line costs at least: its allocation and its place in the queue. It bounds the number of lines.
const MIN_COST: usize = 256;

/// A queue of lines. Clones share it. Dropping the guard that comes with it writes the waiting lines.
#[derive(Clone, Debug)]
pub struct LineQueue {
    writer: NonBlocking,
    waiting: Arc<AtomicUsize>,
    lost: LostLines,
}

/// The number of lines that were lost because the disk was too slow or full.
#[derive(Clone, Debug, Default)]
pub struct LostLines(Arc<AtomicU64>);

impl LostLines {
    /// The number of lines.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl LineQueue {
    /// Starts the thread that writes. It escapes what a reader of the log would not see.
    pub fn start(writer: impl Write + Send + 'static) -> (Self, WorkerGuard) {
        let (waiting, lost) = (Arc::<AtomicUsize>::default(), LostLines::default());
        let drain = Drain { writer: Escaping(writer), waiting: Arc::clone(&waiting), lost: lost.clone() };
        let (writer, guard) =
            NonBlockingBuilder::default().lossy(true).buffered_lines_limit(MAX_BYTES / MIN_COST).finish(drain);
        (Self { writer, waiting, lost }, guard)
    }

    /// The number of lines that were lost so far.
    pub const fn lost(&self) -> &LostLines {
        &self.lost
    }
}

impl Write for LineQueue {
    /// Queues a line, or drops it. Never fails, and never blocks.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let cost = cost(line);
        if self.waiting.fetch_add(cost, Ordering::Relaxed) + cost > MAX_BYTES {
            self.waiting.fetch_sub(cost, Ordering::Relaxed);
            self.lost.0.fetch_add(1, Ordering::Relaxed);
            return Ok(line.len());
        }
        self.writer.write(line)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn cost(line: &[u8]) -> usize {
    line.len().max(MIN_COST)
}

/// The end of the queue, on the thread that writes. It is given each line as it was queued.
struct Drain<W> {
    writer: W,
    waiting: Arc<AtomicUsize>,
    lost: LostLines,
}

impl<W: Write> Write for Drain<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.writer.write_all(line).is_err() {
            self.lost.0.fetch_add(1, Ordering::Relaxed);
        }
        self.waiting.fetch_sub(cost(line), Ordering::Relaxed);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A disk that takes a line only when it is told to.
    struct Stalled(Receiver<()>, Sender<usize>);

    impl Write for Stalled {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(line.len());
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_whatever_the_length_of_lines() {
        for len in [1, 300, 40_000, MAX_BYTES] {
            let (go, gate) = channel();
            let (taken, written) = channel();
            let (mut queue, guard) = LineQueue::start(Stalled(gate, taken));
            let line = vec![b'x'; len];
            let fitting = MAX_BYTES / len.max(MIN_COST);
            for _ in 0..fitting + 10 {
                assert_eq!(queue.write(&line).unwrap(), len);
            }
            assert!(queue.waiting.load(Ordering::Relaxed) <= MAX_BYTES);
            assert_eq!(queue.lost().count(), 10, "{len}");
            // Once lines are written, there is room again.
            drop(go);
            drop(guard);
            assert_eq!(written.iter().take(fitting).sum::<usize>(), fitting * len, "nothing else is lost");
            assert_eq!(queue.waiting.load(Ordering::Relaxed), 0);
        }
    }

    #[test]
    fn a_full_disk_loses_lines_and_is_counted() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (mut queue, guard) = LineQueue::start(Full);
        queue.write_all(b"a line\n").unwrap();
        drop(guard);
        assert_eq!(queue.lost().count(), 1);
    }
}
