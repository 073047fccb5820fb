use std::cell::Cell;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

use super::*;

const SOON: Duration = Duration::from_secs(20);

thread_local! {
    /// How often streams have been written to on this thread.
    pub(in crate::store::etcd) static WRITES: Cell<u64> = const { Cell::new(0) };
}

/// Counts the writes to a stream, and notes their lengths.
struct Noted {
    stream: DuplexStream,
    lengths: Vec<usize>,
}

impl AsyncWrite for Noted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        let count = ready!(Pin::new(&mut self.stream).poll_write(cx, from))?;
        self.lengths.push(count);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// A stream whose other end has room for `room` bytes.
fn stream(room: usize) -> (Coalesced<Noted>, DuplexStream) {
    let (stream, peer) = duplex(room);
    (Coalesced::new(Noted { stream, lengths: Vec::new() }), peer)
}

fn pong() -> Vec<u8> {
    [&PONG[..], &[7; 8]].concat()
}

/// As a request's headers and its data come from two tasks.
#[tokio::test]
async fn what_other_tasks_add_during_a_flush_leaves_in_one_write() {
    let (mut stream, _peer) = stream(FULL);
    let mut to_add = vec![b"end", b"mid"];
    stream.write_all(b"top").await.unwrap();
    let flushing = std::future::poll_fn(|cx| {
        let flushed = Pin::new(&mut stream).poll_flush(cx);
        if flushed.is_pending()
            && let Some(part) = to_add.pop()
        {
            assert!(Pin::new(&mut stream).poll_write(cx, part).is_ready());
        }
        flushed
    });
    timeout(SOON, flushing).await.unwrap().unwrap();
    assert_eq!(stream.stream.lengths, [9]);
    assert!(to_add.is_empty());
}

#[tokio::test]
async fn a_full_buffer_is_written_although_nobody_flushes() {
    let (mut stream, _peer) = stream(4 * FULL);
    stream.write_all(&[0; FULL]).await.unwrap();
    assert!(stream.stream.lengths.is_empty());
    stream.write_all(b"more").await.unwrap();
    assert_eq!(stream.stream.lengths, [FULL]);
}

#[tokio::test]
async fn everything_arrives_in_order_however_little_the_peer_takes() {
    let (mut stream, mut peer) = stream(7);
    let sent: Vec<u8> = (0..3 * FULL).map(|n| n as u8).collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        for part in sent.chunks(1_000) {
            stream.write_all(part).await.unwrap();
            stream.flush().await.unwrap();
        }
        stream.write_all(b"unflushed").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut received = Vec::new();
    timeout(SOON, peer.read_to_end(&mut received)).await.unwrap().unwrap();
    sending.await.unwrap();
    assert_eq!(received.strip_suffix(b"unflushed"), Some(&expected[..]));
}

#[tokio::test]
async fn a_pong_leaves_with_the_next_request() {
    let (mut stream, _peer) = stream(FULL);
    for _ in 0..2 {
        stream.write_all(&pong()).await.unwrap();
        stream.flush().await.unwrap();
        stream.write_all(b"request").await.unwrap();
        stream.flush().await.unwrap();
    }
    assert_eq!(stream.stream.lengths, [PONG_LENGTH + 7; 2]);
}

#[tokio::test]
async fn a_pong_leaves_alone_if_no_request_comes() {
    let (mut stream, mut peer) = stream(FULL);
    for _ in 0..3 {
        stream.write_all(&pong()).await.unwrap();
        stream.flush().await.unwrap();
        assert!(stream.stream.lengths.is_empty());
        // The connection's task is woken when the pong is due, and flushes again.
        let flushing = std::future::poll_fn(|cx| {
            let _ = Pin::new(&mut stream).poll_flush(cx);
            if stream.stream.lengths.is_empty() { Poll::Pending } else { Poll::Ready(()) }
        });
        timeout(SOON, flushing).await.unwrap();
        assert_eq!(stream.stream.lengths.split_off(0), [PONG_LENGTH]);
        let mut received = [0; PONG_LENGTH];
        peer.read_exact(&mut received).await.unwrap();
        assert_eq!(received[..], pong());
    }
}

#[tokio::test]
async fn another_message_of_a_pongs_length_is_not_held_back() {
    let (mut stream, _peer) = stream(FULL);
    let mut ping = pong();
    ping[4] = 0;
    stream.write_all(&ping).await.unwrap();
    stream.flush().await.unwrap();
    assert_eq!(stream.stream.lengths, [PONG_LENGTH]);
}
