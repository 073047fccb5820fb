//! One direction of one proxied connection.

use std::future::{Future, pending, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::io::AsyncWrite;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::{Counts, Loss, Rules, Way};
use crate::support::http2::Calls;
use crate::support::mute::Muzzle;

pub(super) struct Pipe<'a> {
    pub(super) way: Way,
    pub(super) rules: Arc<watch::Sender<Rules>>,
    pub(super) calls: &'a Mutex<Calls>,
    /// On a connection without TLS.
    pub(super) muzzle: Option<&'a Mutex<Muzzle>>,
    /// The member at the other end, if it is one: it names itself in its first bytes.
    pub(super) peer: &'a OnceLock<String>,
    pub(super) counts: &'a Counts,
}

impl Pipe<'_> {
    /// Ends when the sender has ended its side; an error resets the connection.
    pub(super) async fn run(self, from: ReadHalf<'_>, to: WriteHalf<'_>) -> io::Result<()> {
        let (queue, queued) = mpsc::unbounded_channel();
        let read = self.read(from, queue);
        let write = self.write(queued, to);
        tokio::try_join!(read, write).map(drop)
    }

    /// Reads all data as it arrives, so that the data of a client that has disconnected is still delivered.
    async fn read(
        &self,
        from: ReadHalf<'_>,
        queue: mpsc::UnboundedSender<(Instant, Vec<u8>)>,
    ) -> io::Result<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            from.readable().await?;
            match from.try_read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    let bytes = &buffer[..read];
                    if self.way == Way::ToServer && self.peer.get().is_none() {
                        peer_in(bytes).and_then(|peer| self.peer.set(peer).ok());
                    }
                    drop(queue.send((Instant::now(), bytes.to_vec())));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // When a client has disconnected, the pipe ends its side; when a server has, the pipe resets the
                // connection.
                Err(_) if self.way == Way::ToServer => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }

    async fn write(
        &self,
        mut queue: mpsc::UnboundedReceiver<(Instant, Vec<u8>)>,
        mut to: WriteHalf<'_>,
    ) -> io::Result<()> {
        while let Some((arrived, mut bytes)) = queue.recv().await {
            self.open().await;
            let delay = self.rules.borrow().delay(self.way);
            sleep_until(arrived + delay).await;
            self.open().await;
            match self.way {
                Way::ToServer => self.calls().client_sent(&bytes),
                Way::ToClient => {
                    let answer = self.calls().server_sent(&bytes);
                    if let Some((begin, loss)) = answer.and_then(|begin| Some((begin, self.take_loss()?))) {
                        write_all(&to, &bytes[..begin]).await?;
                        self.counts.lost.fetch_add(1, Ordering::SeqCst);
                        match loss {
                            Loss::Reset => return Err(io::ErrorKind::ConnectionReset.into()),
                            Loss::Silence => return pending().await,
                        }
                    }
                }
            }
            if let Some(muzzle) = self.muzzle {
                let mut muzzle = muzzle.lock().unwrap_or_else(PoisonError::into_inner);
                match self.way {
                    Way::ToServer => muzzle.client_sent(&bytes),
                    Way::ToClient => bytes = muzzle.server_sent(&bytes, self.rules.borrow().mute_watches),
                }
            }
            write_all(&to, &bytes).await?;
        }
        self.open().await;
        poll_fn(|context| Pin::new(&mut to).poll_shutdown(context)).await
    }

    fn take_loss(&self) -> Option<Loss> {
        let mut loss = None;
        self.rules.send_if_modified(|rules| {
            match &mut rules.lose {
                Some((0, due)) => {
                    loss = Some(*due);
                    rules.lose = None;
                }
                Some((others, _)) => *others -= 1,
                None => return false,
            }
            true
        });
        loss
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until this direction is not held.
    fn open(&self) -> impl Future<Output = ()> {
        let (mut rules, way, peer) = (self.rules.subscribe(), self.way, self.peer);
        async move { drop(rules.wait_for(|rules| !rules.holds(way, peer.get())).await) }
    }
}

async fn write_all(to: &WriteHalf<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The id of the member that sent this request: etcd's peers name themselves in a header.
fn peer_in(bytes: &[u8]) -> Option<String> {
    let text = String::from_utf8_lossy(bytes);
    let (_, rest) = text.split_once("X-Server-From: ")?;
    Some(rest.lines().next()?.trim().to_owned())
}
