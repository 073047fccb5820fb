//! The way from caller threads to the I/O thread, and the wait for its answers; here a forked child is noticed.

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

/// The callers' end. Sending never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
    /// Where the I/O thread is.
    process: Process,
    /// Has the other ends of the channels that callers see.
    report: Arc<Report>,
}

/// The I/O thread's end. What still lies in it when it is dropped is dropped too, and with it every channel on which
/// somebody waits for an answer.
#[derive(Debug)]
pub(crate) struct Inbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    messages: MessageQueue<Message>,
    /// Holds at most one wake-up, so a burst of messages costs one.
    bell: Notify,
    end: AtomicU8,
    /// In a forked child: the copies of channels are being closed.
    left_behind: AtomicBool,
}

/// Whether the I/O thread still serves, and if not, why. Set by the I/O thread, or by whoever gives up waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Service {
    /// It serves.
    Running = 0,
    /// The manager is being closed, or is closed.
    Closed = 1,
    /// The manager is closed, but etcd did not confirm that the session is gone.
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
    /// Leaves a message and wakes the I/O thread. An error once it serves no more.
    pub(crate) fn send(&self, message: Message) -> Result<(), LockError> {
        self.check()?;
        if self.shared.messages.push(message) {
            self.shared.bell.notify_one();
            return Ok(());
        }
        Err(self.gone())
    }

    /// Waits for the I/O thread's answer, for ever without a deadline. In a forked child none will ever come.
    ///
    /// Parks at once: an answer takes a commit of etcd's, so to spin before, as crossbeam's channels do, would never pay,
    /// and of 64 threads that wait it would cost the I/O thread a third of its core.
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

    /// Puts a question to the I/O thread and waits for the answer, at most `limit`.
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

    /// An error once the I/O thread serves no more.
    pub(crate) fn check(&self) -> Result<(), LockError> {
        if self.is_here() && self.end() == Service::Running { Ok(()) } else { Err(self.gone()) }
    }

    /// False in a child of the process that made this, where nothing works and no mutex may be taken: the thread that had
    /// it at the fork does not exist. The first time, the child's copies of channels are closed.
    pub(crate) fn is_here(&self) -> bool {
        let is_here = self.process.is_current();
        if !is_here && !self.shared.left_behind.swap(true, Ordering::AcqRel) {
            self.close_copies();
        }
        is_here
    }

    /// In a forked child: closes the child's copies of `done()` and `ready()`, for whoever has a clone of one.
    ///
    /// On a thread of its own, because a channel has a lock inside that a thread of the parent may have had at the fork,
    /// in the child for ever: then that thread hangs, and nobody who calls.
    fn close_copies(&self) {
        let (report, shared) = (Arc::clone(&self.report), Arc::clone(&self.shared));
        let closing = thread::Builder::new().name("etcd-lock-fork".into()).spawn(move || {
            report.holds.abandon_copy();
            report.tickets.abandon_copy();
            shared.messages.abandon_copy();
        });
        // Where no thread can be had, the channels stay as they are.
        drop(closing);
    }

    fn end(&self) -> Service {
        self.shared.end()
    }

    /// The I/O thread hangs and the manager is closed without it: what it has not read is dropped, and with it every
    /// channel on which somebody waits for an answer. The thread closes down if it ever goes on.
    pub(crate) fn abandon(&self) {
        let _ = self.shared.end.fetch_max(Service::Unconfirmed as u8, Ordering::AcqRel);
        self.shared.messages.close();
        self.shared.bell.notify_one();
    }

    /// What a call fails with whose answer will never come.
    pub(crate) fn gone(&self) -> LockError {
        if !self.is_here() {
            return LockError::Forked;
        }
        match self.end() {
            Service::Closed | Service::Unconfirmed => LockError::Closed,
            Service::Running | Service::Crashed => LockError::Crashed,
        }
    }

    /// What [`close`](crate::LockManager::close) says when the I/O thread has come to its end.
    pub(crate) fn closing_result(&self) -> Result<(), LockError> {
        match self.end() {
            Service::Closed => Ok(()),
            Service::Unconfirmed => Err(LockError::Unavailable {
                doing: "closing the session".into(),
                source: Cause::new("etcd did not confirm it in time; what is left expires with the lease"),
            }),
            Service::Running | Service::Crashed => Err(self.gone()),
        }
    }
}

impl Inbox {
    /// Waits until there may be messages.
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

    /// Makes [`ready`](Self::ready) return once more: messages were left for the next turn.
    pub(crate) fn ring_again(&self) {
        if !self.shared.messages.is_empty() {
            self.shared.bell.notify_one();
        }
    }

    /// Whether the manager was closed while this thread hung.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.shared.messages.is_closed()
    }

    /// From now on nothing new is accepted. A crash is never made up for, and overrides everything.
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
    fn a_burst_rings_once() {
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
    fn what_is_left_for_the_next_turn_rings_again() {
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
    fn messages_of_many_threads_all_arrive_in_each_thread_s_order() {
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
    fn after_the_end_sending_says_why() {
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
    fn dropping_the_inbox_tells_everybody_who_waits_for_an_answer() {
        let (open, inbox) = mailbox(&Arc::default());
        let (reply, answer) = oneshot::channel();
        open.send(Message::Leave { ticket: Ticket(1), reply: Some(reply) }).unwrap();
        drop(inbox);
        assert!(answer.recv().is_err());
    }
}
