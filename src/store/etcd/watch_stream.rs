//! The watch stream shared by all watches of a manager: opened for the first watch, reopened whenever it breaks.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use etcd_client::{WatchRequestSender, WatchResponseStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, sleep_until, timeout};

use super::convert;
use super::endpoint::{Endpoint, Link};
use super::endpoints::{Endpoints, Pin};
use super::fault::{EtcdFault, FaultKind};
use super::heartbeat::{Beat, Heartbeat};
use super::watch_set::{Trouble, WatchRequest, WatchSet, back_off};
use crate::kv::{FailureClass, WatchEvent};
use crate::store::WatchOrder;

/// After a stream that lasted this long, the next one is opened without a back-off.
const GOOD_STREAM: Duration = Duration::from_secs(2);

/// Serves watches until `orders` or `events` is closed.
pub(super) async fn run(
    endpoints: Arc<Endpoints>,
    open_timeout: Duration,
    orders: UnboundedReceiver<WatchOrder>,
    events: UnboundedSender<WatchEvent>,
) {
    let watches = WatchSet::default();
    // Shutdown is an `Err`, so that `?` propagates it from any depth.
    let Err(Closed) = WatchTask { endpoints, open_timeout, orders, events, watches }.run().await;
}

/// `orders` or `events` is closed: the task ends.
struct Closed;

enum Never {}

struct WatchTask {
    endpoints: Arc<Endpoints>,
    open_timeout: Duration,
    orders: UnboundedReceiver<WatchOrder>,
    events: UnboundedSender<WatchEvent>,
    watches: WatchSet,
}

/// An open stream. Its two ends are used independently: sending without reading could block for ever.
struct Stream {
    sender: WatchRequestSender,
    messages: WatchResponseStream,
    pin: Pin,
    endpoint: Arc<Endpoint>,
    link: Link,
}

impl WatchTask {
    async fn run(mut self) -> Result<Never, Closed> {
        let mut failures = 0;
        loop {
            while self.watches.is_empty() {
                let order = self.orders.recv().await.ok_or(Closed)?;
                self.watches.apply(order);
            }
            if failures > 0 {
                self.pause(back_off(failures)).await?;
            }
            if self.watches.is_empty() {
                continue;
            }
            let Some((pin, endpoint)) = self.endpoints.choose(&[]) else {
                // All endpoints belong to other clusters; requests report that.
                failures += 1;
                continue;
            };
            let opened = Instant::now();
            let fault = match self.open(pin, &endpoint).await? {
                Ok(stream) => self.serve(stream).await?,
                Err(fault) => fault,
            };
            log::debug!(target: "etcd_lock", "{}: the watch stream is lost: {fault}", endpoint.url());
            // etcd closes a stream after three seconds without a leader, so trying another endpoint loses nothing.
            if fault.blames_endpoint() || fault.kind == FaultKind::Leaderless {
                self.endpoints.failed(pin, &fault);
            }
            failures = if opened.elapsed() >= GOOD_STREAM { 0 } else { failures + 1 };
        }
    }

    /// Sleeps, while still applying orders.
    async fn pause(&mut self, pause: Duration) -> Result<(), Closed> {
        let until = Instant::now() + pause;
        loop {
            tokio::select! {
                order = self.orders.recv() => self.watches.apply(order.ok_or(Closed)?),
                () = sleep_until(until) => return Ok(()),
            }
        }
    }

    /// Opens a stream, while still applying orders.
    async fn open(
        &mut self,
        pin: Pin,
        endpoint: &Arc<Endpoint>,
    ) -> Result<Result<Stream, EtcdFault>, Closed> {
        self.watches.restart();
        let Some(WatchRequest::Create { wire, spec }) = self.watches.next() else {
            return Ok(Err(EtcdFault::class(FailureClass::NotDone, "there is nothing to watch")));
        };
        self.watches.mark_sent();
        let (key, options) = convert::to_watch(&spec, wire);
        let mut used = None;
        let opening = async {
            let link = endpoint.link().await?;
            used = Some(link.clone());
            log::trace!(target: "etcd_lock", "{}: opening the watch stream", endpoint.url());
            let stream = link.watches().watch(key, Some(options)).await?;
            let (sender, messages) = stream.split();
            Ok::<_, EtcdFault>(Stream { sender, messages, pin, endpoint: endpoint.clone(), link })
        };
        let result = {
            let mut opening = std::pin::pin!(timeout(self.open_timeout, opening));
            let mut left = std::pin::pin!(self.endpoints.left(pin));
            loop {
                tokio::select! {
                    order = self.orders.recv() => self.watches.apply(order.ok_or(Closed)?),
                    result = &mut opening => break result,
                    () = &mut left => return Ok(Err(its_endpoint_failed())),
                }
            }
        };
        Ok(match result {
            Ok(result) => {
                if let (Err(EtcdFault { kind: FaultKind::Token, .. }), Some(link)) = (&result, &used) {
                    endpoint.token_refused(link);
                }
                result
            }
            Err(_) => {
                if let Some(link) = &used {
                    endpoint.give_up(link);
                }
                Err(EtcdFault::class(FailureClass::Unknown, "no answer to the watch in time"))
            }
        })
    }

    /// Sends requests and handles messages until the stream breaks; returns why it did.
    async fn serve(&mut self, mut stream: Stream) -> Result<EtcdFault, Closed> {
        let mut heartbeat = Heartbeat::heard(Instant::now());
        let mut left = std::pin::pin!(self.endpoints.left(stream.pin));
        loop {
            self.watches.retry_due(Instant::now());
            let next = self.watches.next();
            let has_next = next.is_some();
            let beat = heartbeat.next(self.watches.len());
            tokio::select! {
                // Messages that have arrived are handled before timers.
                biased;
                order = self.orders.recv() => {
                    if self.watches.is_empty() {
                        // Without watches, the stream was not monitored until now.
                        heartbeat = Heartbeat::heard(Instant::now());
                    }
                    self.watches.apply(order.ok_or(Closed)?);
                }
                message = stream.messages.message() => {
                    heartbeat = Heartbeat::heard(Instant::now());
                    match message {
                        Ok(Some(message)) => {
                            if let Err(fault) = self.handle_message(&message, &stream)? {
                                return Ok(fault);
                            }
                        }
                        // A stream ends with its server, or with its leader.
                        Ok(None) => return Ok(EtcdFault::class(FailureClass::Unknown, "the watch stream has ended")),
                        Err(error) => {
                            let fault = EtcdFault::from(error);
                            if fault.kind == FaultKind::Token {
                                stream.endpoint.token_refused(&stream.link);
                            }
                            return Ok(fault);
                        }
                    }
                }
                sent = send(&mut stream.sender, next), if has_next => match sent {
                    Ok(()) => self.watches.mark_sent(),
                    Err(fault) => return Ok(fault),
                },
                // Requests to this endpoint fail, so watch events may be missing as well.
                () = &mut left => return Ok(its_endpoint_failed()),
                () = sleep_until_some(beat) => match heartbeat.beat(Instant::now(), self.watches.len()) {
                    Beat::Nothing => {}
                    Beat::AskProgress => self.watches.ask_progress(),
                    Beat::Dead => {
                        stream.endpoint.give_up(&stream.link);
                        return Ok(EtcdFault::class(FailureClass::Unknown, "the watch stream does not answer a progress request"));
                    }
                },
                () = sleep_until_some(self.watches.next_retry()) => {}
            }
        }
    }

    /// Handles a message. The inner error means that the stream must be replaced.
    fn handle_message(
        &mut self,
        message: &etcd_client::WatchResponse,
        stream: &Stream,
    ) -> Result<Result<(), EtcdFault>, Closed> {
        let message = match convert::from_watch(message) {
            Ok(message) => message,
            Err(fault) => return Ok(Err(fault)),
        };
        if let Err(fault) = self.endpoints.check_cluster(stream.pin.index, message.cluster) {
            return Ok(Err(fault));
        }
        let reason = message.reason.clone();
        let mut closed = false;
        let events = &self.events;
        let trouble = self
            .watches
            .handle_message(message, Instant::now(), |event| closed |= events.send(event).is_err());
        if closed {
            return Err(Closed);
        }
        if !stream.endpoint.has_credentials() {
            if trouble == Some(Trouble::Token) {
                self.watches.warn_once(&reason, "a key without credentials");
            }
            return Ok(Ok(()));
        }
        let refused = match trouble {
            None => false,
            Some(Trouble::Token) => true,
            // The old token may have been refused: some releases of etcd report this as a missing permission.
            Some(Trouble::Permission) => stream.endpoint.has_newer_token(&stream.link),
        };
        if refused {
            // The token is sent when the stream is opened, so a new token needs a new stream.
            stream.endpoint.token_refused(&stream.link);
            return Ok(Err(EtcdFault::new(FaultKind::Token, reason)));
        }
        Ok(Ok(()))
    }
}

/// Sends the next request. Cancel-safe: if dropped before it has sent, the caller sends the same request again.
async fn send(sender: &mut WatchRequestSender, request: Option<WatchRequest>) -> Result<(), EtcdFault> {
    match request {
        None => pending().await,
        Some(WatchRequest::Create { wire, spec }) => {
            let (key, options) = convert::to_watch(&spec, wire);
            sender.watch(key, Some(options)).await?;
        }
        Some(WatchRequest::Cancel { wire }) => sender.cancel(wire).await?,
        Some(WatchRequest::Progress) => sender.request_progress().await?,
    }
    Ok(())
}

/// The fault of a stream whose endpoint was abandoned because requests failed there.
fn its_endpoint_failed() -> EtcdFault {
    EtcdFault::new(FaultKind::Abandoned, "requests to its endpoint have failed")
}

/// Never returns for `None`.
async fn sleep_until_some(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}
