//! Devices that write as fast as they can.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::AsyncWriteExt;
use tokio::task::JoinSet;

use super::Session;

/// The payload of a large message, in bytes.
pub(crate) const LARGE: usize = 64 << 10;

/// Each session writes these bytes again and again. Returns the sessions, which must stay open until the last byte has arrived, and
/// the number of bytes.
pub(crate) async fn write_again_and_again(
    sessions: Vec<Session>,
    bytes: Vec<u8>,
    duration: Duration,
) -> anyhow::Result<(Vec<Session>, usize)> {
    let (bytes, mut writers) = (Arc::new(bytes), JoinSet::new());
    let begin = Instant::now();
    for mut session in sessions {
        let bytes = Arc::clone(&bytes);
        writers.spawn(async move {
            let mut sent = 0;
            while begin.elapsed() < duration {
                // One call makes one TLS record, or as few as possible, and one system call.
                session.write_all(&bytes).await?;
                sent += bytes.len();
            }
            session.flush().await?;
            anyhow::Ok((session, sent))
        });
    }
    let (mut sessions, mut all) = (Vec::new(), 0);
    while let Some(written) = writers.join_next().await {
        let (session, sent) = written??;
        sessions.push(session);
        all += sent;
    }
    Ok((sessions, all))
}
