//! A stream whose peer has to read what it is sent.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

/// Fails a write if the peer does not take all that was written, up to the next flush, within a time. A peer that reads a
/// byte now and then does not extend it.
pub(crate) struct WriteDeadline<S> {
    stream: S,
    limit: Duration,
    /// Set while the peer is behind.
    expires: Option<Pin<Box<Sleep>>>,
}

impl<S> WriteDeadline<S> {
    /// Allows the peer this long to take what is written.
    pub(crate) const fn new(stream: S, limit: Duration) -> Self {
        Self { stream, limit, expires: None }
    }

    fn wait(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let limit = self.limit;
        let expires = self.expires.get_or_insert_with(|| Box::pin(sleep(limit)));
        ready!(expires.as_mut().poll(cx));
        Poll::Ready(io::ErrorKind::TimedOut.into())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for WriteDeadline<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for WriteDeadline<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(cx, bytes) {
            Poll::Pending => self.wait(cx).map(Err),
            written @ Poll::Ready(_) => written,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match Pin::new(&mut self.stream).poll_flush(cx) {
            Poll::Pending => self.wait(cx).map(Err),
            flushed @ Poll::Ready(_) => {
                self.expires = None;
                flushed
            }
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_reads_too_slowly_is_given_up() {
        let (ours, mut theirs) = duplex(16);
        let mut stream = WriteDeadline::new(ours, LIMIT);
        let drip = tokio::spawn(async move {
            while theirs.read_u8().await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let begin = tokio::time::Instant::now();
        assert_eq!(stream.write_all(&[0; 100]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begin.elapsed().as_secs(), 5);
        drop(stream);
        drip.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_keeps_up_has_the_whole_time_again() {
        let (ours, mut theirs) = duplex(16);
        let mut stream = WriteDeadline::new(ours, LIMIT);
        let reader = tokio::spawn(async move {
            let mut received = 0;
            while theirs.read_u8().await.is_ok() {
                received += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            received
        });
        for _ in 0..10 {
            stream.write_all(&[0; 40]).await.unwrap();
            stream.flush().await.unwrap();
        }
        drop(stream);
        assert_eq!(reader.await.unwrap(), 400);
    }
}
