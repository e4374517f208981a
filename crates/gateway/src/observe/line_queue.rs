//! Lines that wait for a disk or a pipe. Enters: whole lines. Leaves: the same lines, written by a thread, many at once. A
//! writer never waits: if more than [`MAX_BYTES`] wait, further lines are dropped and counted.

use std::io::{self, Write};
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::escape::escape_lines;

/// The limit of what waits, in bytes. Clients choose the length of lines, so a limit of lines would not bound memory.
const MAX_BYTES: usize = 16 << 20;
/// How long the thread collects lines after it has written some: each by itself would cost a system call and a wake-up.
const COLLECT: Duration = Duration::from_millis(20);
/// How long the last lines may take to write.
const LAST_LINES: Duration = Duration::from_secs(1);
/// What the thread keeps of its memory once all is written.
const KEPT: usize = 64 << 10;

/// A queue of lines. Clones share it.
#[derive(Clone, Debug)]
pub struct LineQueue(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
    lost: LostLines,
}

#[derive(Debug, Default)]
struct Queue {
    lines: Vec<u8>,
    /// The bytes that the thread is writing.
    writing: usize,
    /// The thread looks for lines by itself.
    is_collecting: bool,
    /// No more lines come.
    is_ended: bool,
    /// The thread has written all lines.
    is_written: bool,
}

/// The thread that writes. Dropping it writes the waiting lines, for a second at most: nobody may read the pipe.
#[derive(Debug)]
pub struct LineWriter(Arc<Shared>);

/// The number of lines that were lost because the disk was too slow or full.
#[derive(Clone, Debug, Default)]
pub struct LostLines(Arc<AtomicU64>);

impl LostLines {
    /// The number of lines.
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, lines: u64) {
        self.0.fetch_add(lines, Ordering::Relaxed);
    }
}

impl LineQueue {
    /// Starts the thread that writes. It escapes what a reader of the log would not see.
    ///
    /// # Errors
    /// The system allows no more threads.
    pub fn start(writer: impl Write + Send + 'static) -> io::Result<(Self, LineWriter)> {
        let shared = Arc::<Shared>::default();
        let queue = Arc::clone(&shared);
        Builder::new().name("log".to_owned()).spawn(move || {
            write_lines(&queue, writer);
            queue.queue.lock().is_written = true;
            queue.changed.notify_all();
        })?;
        Ok((Self(Arc::clone(&shared)), LineWriter(shared)))
    }

    /// The bytes that are not written yet.
    #[cfg(test)]
    fn waiting(&self) -> usize {
        let queue = self.0.queue.lock();
        queue.lines.len() + queue.writing
    }

    /// The number of lines that were lost so far.
    pub fn lost(&self) -> &LostLines {
        &self.0.lost
    }
}

impl Write for LineQueue {
    /// Queues a line, or drops it. Never fails, and never blocks.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.0.queue.lock();
        if queue.is_ended || queue.lines.len() + queue.writing + line.len() > MAX_BYTES {
            self.0.lost.add(1);
            return Ok(line.len());
        }
        let is_awaited = queue.lines.is_empty() && !queue.is_collecting;
        queue.lines.extend_from_slice(line);
        drop(queue);
        if is_awaited {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LineWriter {
    fn drop(&mut self) {
        let Shared { queue, changed, lost } = &*self.0;
        let mut queue = queue.lock();
        queue.is_ended = true;
        changed.notify_all();
        let until = Instant::now() + LAST_LINES;
        while !queue.is_written && !changed.wait_until(&mut queue, until).timed_out() {}
        if !queue.is_written {
            lost.add(count(&queue.lines));
        }
    }
}

/// Writes lines until the queue has ended and all are written.
fn write_lines(shared: &Shared, mut writer: impl Write) {
    let mut lines = Vec::new();
    loop {
        let mut queue = shared.queue.lock();
        while queue.lines.is_empty() && !queue.is_ended {
            shared.changed.wait(&mut queue);
        }
        if queue.lines.is_empty() {
            return;
        }
        mem::swap(&mut queue.lines, &mut lines);
        queue.writing = lines.len();
        drop(queue);
        write_all(&mut writer, &escape_lines(&lines), &shared.lost);
        lines.clear();
        lines.shrink_to(KEPT);
        let mut queue = shared.queue.lock();
        queue.writing = 0;
        if !queue.is_ended {
            queue.is_collecting = true;
            // Woken earlier only by the end.
            shared.changed.wait_for(&mut queue, COLLECT);
            queue.is_collecting = false;
        }
    }
}

fn count(lines: &[u8]) -> u64 {
    lines.split_inclusive(|byte| *byte == b'\n').count() as u64
}

/// Writes as much as possible, and counts the lines that are not written whole.
fn write_all(writer: &mut impl Write, mut lines: &[u8], lost: &LostLines) {
    while !lines.is_empty() {
        match writer.write(lines) {
            Ok(written @ 1..) => lines = &lines[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => {
                return lost.add(count(lines));
            }
        }
    }
    let _ = writer.flush();
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
            let (mut queue, writer) = LineQueue::start(Stalled(gate, taken)).unwrap();
            let line = vec![b'x'; len];
            let fitting = MAX_BYTES / len;
            for _ in 0..fitting + 10 {
                assert_eq!(queue.write(&line).unwrap(), len);
            }
            assert!(queue.waiting() <= MAX_BYTES);
            assert_eq!(queue.lost().count(), 10, "{len}");
            // Once lines are written, there is room again.
            drop(go);
            drop(writer);
            assert_eq!(written.iter().sum::<usize>(), fitting * len, "nothing else is lost");
            assert_eq!(queue.waiting(), 0);
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
        let (mut queue, writer) = LineQueue::start(Full).unwrap();
        queue.write_all(b"a line\n").unwrap();
        drop(writer);
        assert_eq!(queue.lost().count(), 1);
    }
}
