//! The queue of messages from callers' threads to the I/O thread, and the wait for its answers. Every call passes here,
//! so here a forked child is detected.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use oneshot::{Receiver, RecvTimeoutError};
use tokio::sync::Notify;

use crate::error::{Cause, LockError};
use crate::shared::async_hint::about_to_block;
use crate::shared::message::{Message, Query};
use crate::shared::message_queue::MessageQueue;
use crate::shared::process::Process;
use crate::shared::report::Report;

/// The callers' end. Sending never blocks on the I/O thread.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
    /// The process in which the I/O thread runs.
    process: Process,
    /// Holds the other ends of the channels that callers see, which a forked child closes.
    report: Arc<Report>,
}

/// The I/O thread's end. Dropping it drops the unread messages, and with them every channel on which a caller waits for
/// an answer.
#[derive(Debug)]
pub(crate) struct Inbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Callers push, the I/O thread pops. Unbounded; see [`MessageQueue`].
    messages: MessageQueue<Message>,
    /// Wakes the I/O thread. It stores at most one permit, so a burst of messages costs one wake-up.
    bell: Notify,
    /// A [`Service`]; it only increases.
    end: AtomicU8,
    /// Set in a forked child by the first call, which closes the child's copies of channels.
    left_behind: AtomicBool,
}

/// Whether the I/O thread serves callers, and if not, why. Set by the I/O thread, or by the thread that closes the
/// manager and stops waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Service {
    /// The I/O thread serves callers.
    Running = 0,
    /// The manager is closing or closed.
    Closed = 1,
    /// The manager is closed, but etcd did not confirm the end of the session.
    Unconfirmed = 2,
    /// The I/O thread died.
    Crashed = 3,
}

pub(crate) fn mailbox(report: &Arc<Report>) -> (Mailbox, Inbox) {
    let shared = Arc::new(Shared {
        messages: MessageQueue::new(),
        bell: Notify::new(),
        end: AtomicU8::new(Service::Running as u8),
        left_behind: AtomicBool::new(false),
    });
    let mailbox =
        Mailbox { shared: Arc::clone(&shared), process: Process::current(), report: Arc::clone(report) };
    (mailbox, Inbox { shared })
}

impl Mailbox {
    /// Sends a message and wakes the I/O thread. An error if it no longer serves callers.
    pub(crate) fn send(&self, message: Message) -> Result<(), LockError> {
        self.check()?;
        if self.shared.messages.push(message) {
            self.shared.bell.notify_one();
            return Ok(());
        }
        Err(self.gone())
    }

    /// Waits for the I/O thread's answer; without a deadline for as long as it takes. In a forked child no answer can
    /// arrive, so it returns at once.
    ///
    /// Parks at once, without spinning as crossbeam's channels do: an answer takes a commit in etcd, so spinning would
    /// never pay, and 64 waiting threads would cost the I/O thread a third of its core.
    pub(crate) fn wait_for<T>(
        &self,
        answer: &Receiver<T>,
        deadline: Option<Instant>,
    ) -> Result<T, RecvTimeoutError> {
        if !self.is_here() {
            return Err(RecvTimeoutError::Disconnected);
        }
        about_to_block();
        match deadline {
            None => answer.recv_ref().map_err(|_| RecvTimeoutError::Disconnected),
            Some(deadline) => answer.recv_deadline(deadline),
        }
    }

    /// Sends a query to the I/O thread and waits for the answer, for at most `limit`.
    pub(crate) fn ask<T>(
        &self,
        limit: Duration,
        doing: &str,
        question: impl FnOnce(oneshot::Sender<Result<T, LockError>>) -> Query,
    ) -> Result<T, LockError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask(question(reply)))?;
        match self.wait_for(&answer, Instant::now().checked_add(limit)) {
            Ok(result) => result,
            Err(RecvTimeoutError::Disconnected) => Err(self.gone()),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Unavailable {
                doing: doing.into(),
                source: Cause::new("the I/O thread did not answer in time"),
            }),
        }
    }

    /// An error if the I/O thread no longer serves callers.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.is_here() && self.end() == Service::Running { Ok(()) } else { Err(self.gone()) }
    }

    /// False in a child of the process that created this, where no mutex may be locked: a thread that held it at the
    /// fork does not exist. The first call in a child closes the child's copies of channels.
    pub(crate) fn is_here(&self) -> bool {
        let is_here = self.process.is_current();
        if !is_here && !self.shared.left_behind.swap(true, Ordering::AcqRel) {
            self.close_copies();
        }
        is_here
    }

    /// In a forked child: closes the child's copies of `done()` and `ready()`, for code that has a clone of one.
    ///
    /// On a separate thread, because a channel has an internal lock. If a thread of the parent held it at the fork, it
    /// is locked in the child for ever; then only this thread hangs, not the caller.
    fn close_copies(&self) {
        let (report, shared) = (Arc::clone(&self.report), Arc::clone(&self.shared));
        let closing = thread::Builder::new().name("etcd-lock-fork".into()).spawn(move || {
            report.holds.abandon_copy();
            report.tickets.abandon_copy();
            report.feeds.abandon_copy();
            shared.messages.abandon_copy();
        });
        // If no thread can be started, the channels remain open.
        drop(closing);
    }

    fn end(&self) -> Service {
        self.shared.end()
    }

    /// Closes the queue while the I/O thread hangs: unread messages are dropped, and with them every channel on which a
    /// caller waits for an answer. If the thread resumes, it shuts down.
    pub(crate) fn abandon(&self) {
        let _ = self.shared.end.fetch_max(Service::Unconfirmed as u8, Ordering::AcqRel);
        self.shared.messages.close();
        self.shared.bell.notify_one();
    }

    /// The error of a call whose answer will never arrive.
    pub(crate) fn gone(&self) -> LockError {
        if !self.is_here() {
            return LockError::Forked;
        }
        match self.end() {
            Service::Closed | Service::Unconfirmed => LockError::Closed,
            Service::Running | Service::Crashed => LockError::Crashed,
        }
    }

    /// The result of [`close`](crate::LockManager::close) once the I/O thread has ended.
    pub(crate) fn closing_result(&self) -> Result<(), LockError> {
        match self.end() {
            Service::Closed => Ok(()),
            Service::Unconfirmed => Err(LockError::Unavailable {
                doing: "closing the session".into(),
                source: Cause::new("etcd did not confirm in time; remaining keys expire with the lease"),
            }),
            Service::Running | Service::Crashed => Err(self.gone()),
        }
    }
}

impl Inbox {
    /// Waits until there may be messages in the queue.
    pub(crate) async fn ready(&self) {
        self.shared.bell.notified().await;
    }

    /// The next message, if there is one.
    pub(crate) fn take(&self) -> Option<Message> {
        self.shared.messages.pop()
    }

    #[cfg(test)]
    pub(crate) fn take_within(&self, limit: std::time::Duration) -> Option<Message> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().ok()?;
        let next = async {
            loop {
                match self.take() {
                    Some(message) => break message,
                    None => self.ready().await,
                }
            }
        };
        runtime.block_on(async { tokio::time::timeout(limit, next).await.ok() })
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.shared.messages.is_empty()
    }

    /// Makes [`ready`](Self::ready) return again if messages were left for the next turn.
    pub(crate) fn ring_again(&self) {
        if !self.shared.messages.is_empty() {
            self.shared.bell.notify_one();
        }
    }

    /// Whether the manager was closed while the I/O thread hung.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.shared.messages.is_closed()
    }

    /// Stops accepting messages. The state only increases, so a crash overrides a regular end and is final.
    pub(crate) fn end(&self, end: Service) {
        let _ = self.shared.end.fetch_max(end as u8, Ordering::AcqRel);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.shared.messages.close();
    }
}

impl Shared {
    fn end(&self) -> Service {
        match self.end.load(Ordering::Acquire) {
            0 => Service::Running,
            1 => Service::Closed,
            2 => Service::Unconfirmed,
            _ => Service::Crashed,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::protocol::Ticket;

    fn leave(ticket: u64) -> Message {
        Message::Leave { ticket: Ticket(ticket), reply: None }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
    }

    async fn rings(inbox: &Inbox) -> bool {
        tokio::time::timeout(Duration::ZERO, inbox.ready()).await.is_ok()
    }

    #[test]
    fn a_burst_of_messages_wakes_the_i_o_thread_once() {
        let (mailbox, inbox) = mailbox(&Arc::default());
        block_on(async {
            assert!(!rings(&inbox).await);
            for ticket in 0..100 {
                mailbox.send(leave(ticket)).unwrap();
            }
            assert!(rings(&inbox).await);
            assert!(!rings(&inbox).await);
            assert_eq!(std::iter::from_fn(|| inbox.take()).count(), 100);
        });
    }

    #[test]
    fn messages_left_for_the_next_turn_wake_the_i_o_thread_again() {
        let (mailbox, inbox) = mailbox(&Arc::default());
        block_on(async {
            mailbox.send(leave(1)).unwrap();
            inbox.ready().await;
            inbox.ring_again();
            assert!(rings(&inbox).await);
            assert!(inbox.take().is_some());
            inbox.ring_again();
            assert!(!rings(&inbox).await);
        });
    }

    #[test]
    fn messages_of_many_threads_arrive_in_each_thread_s_order() {
        let (mailbox, inbox) = mailbox(&Arc::default());
        let senders: Vec<_> = (0..4_u64)
            .map(|thread| {
                let mailbox = mailbox.clone();
                thread::spawn(move || (0..500).for_each(|n| mailbox.send(leave(thread << 32 | n)).unwrap()))
            })
            .collect();
        let mut next = [0_u64; 4];
        block_on(async {
            while next.iter().sum::<u64>() < 2000 {
                inbox.ready().await;
                while let Some(Message::Leave { ticket, .. }) = inbox.take() {
                    let (thread, n) = ((ticket.0 >> 32) as usize, ticket.0 & 0xffff_ffff);
                    assert_eq!(n, next[thread]);
                    next[thread] += 1;
                }
            }
        });
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }

    #[test]
    fn sending_after_the_end_returns_the_reason() {
        let (open, inbox) = mailbox(&Arc::default());
        inbox.end(Service::Closed);
        assert!(matches!(open.send(leave(1)), Err(LockError::Closed)));
        assert!(open.closing_result().is_ok());
        inbox.end(Service::Crashed);
        assert!(matches!(open.send(leave(1)), Err(LockError::Crashed)));

        let (open, inbox) = mailbox(&Arc::default());
        drop(inbox);
        assert!(matches!(open.send(leave(1)), Err(LockError::Crashed)));
    }

    #[test]
    fn dropping_the_inbox_disconnects_every_pending_answer() {
        let (open, inbox) = mailbox(&Arc::default());
        let (reply, answer) = oneshot::channel();
        open.send(Message::Leave { ticket: Ticket(1), reply: Some(reply) }).unwrap();
        drop(inbox);
        assert!(answer.recv().is_err());
    }
}
