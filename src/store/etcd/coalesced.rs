//! A byte stream that is written to in few, large pieces.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// A fuller buffer is written without waiting for more. Some 40 requests fit in.
const FULL: usize = 16 << 10;

/// What the answer to an HTTP/2 ping begins with: a frame of 8 bytes, of type 6, that acknowledges.
const PONG: [u8; 9] = [0, 0, 8, 6, 1, 0, 0, 0, 0];
const PONG_LENGTH: usize = PONG.len() + 8;

/// How long the answer to a ping may wait for a request to travel with. etcd's gRPC server sends a ping with every request
/// it receives, to measure the bandwidth. It gives a client 20 s to answer those that look for dead connections.
const PONG_DELAY: Duration = Duration::from_millis(20);

/// Collects what is written, and writes it to `stream` once it is flushed and other tasks have run.
///
/// The HTTP/2 client flushes a request's headers, its data and its end each by itself, as they come from different tasks, and
/// each write would wake etcd. A flush here first yields to the tasks that are ready to run, as long as they add something. So
/// requests leave whole, and requests that are made at the same time leave together.
pub(super) struct Coalesced<T> {
    stream: T,
    buffer: Vec<u8>,
    /// How much of the buffer is written.
    written: usize,
    /// The length of the buffer when the flush last yielded.
    yielded_at: usize,
    /// When a pong is written at the latest. One timer serves many pongs: starting one can cost a system call, too.
    pong_due: Option<Pin<Box<Sleep>>>,
    holds_pong: bool,
}

impl<T: AsyncWrite + Unpin> Coalesced<T> {
    pub(super) fn new(stream: T) -> Self {
        Self { stream, buffer: Vec::new(), written: 0, yielded_at: 0, pong_due: None, holds_pong: false }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.buffer.get(self.written..).filter(|rest| !rest.is_empty()) {
            let count = ready!(Pin::new(&mut self.stream).poll_write(cx, rest))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written += count;
            #[cfg(test)]
            tests::WRITES.set(tests::WRITES.get() + 1);
        }
        self.buffer.clear();
        // One large message is no reason to keep as much memory for ever.
        self.buffer.shrink_to(2 * FULL);
        (self.written, self.yielded_at, self.holds_pong) = (0, 0, false);
        Poll::Ready(Ok(()))
    }

    /// Takes what is to be written, or waits until the buffer has room.
    fn poll_take(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.buffer.len() >= FULL {
            ready!(self.poll_drain(cx))?;
        }
        parts.iter().for_each(|part| self.buffer.extend_from_slice(part));
        Poll::Ready(Ok(parts.iter().map(|part| part.len()).sum()))
    }

    /// Whether the buffer holds only a pong, which is not due yet. Wakes the task when it is.
    fn may_wait(&mut self, cx: &mut Context<'_>) -> bool {
        if self.buffer.len() != PONG_LENGTH || !self.buffer.starts_with(&PONG) {
            return false;
        }
        let due = self.pong_due.get_or_insert_with(|| Box::pin(sleep(PONG_DELAY)));
        if !self.holds_pong && due.is_elapsed() {
            due.as_mut().reset(Instant::now() + PONG_DELAY);
        }
        self.holds_pong = true;
        due.as_mut().poll(cx).is_pending()
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Coalesced<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, into)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Coalesced<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_take(cx, &[IoSlice::new(from)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_take(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.may_wait(cx) {
            return Poll::Ready(Ok(()));
        }
        let length = self.buffer.len();
        if length > self.yielded_at && length < FULL {
            self.yielded_at = length;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
pub(super) mod tests;
