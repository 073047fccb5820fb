//! The way from caller threads to the I/O thread, and the wait for its answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use oneshot::{Receiver, RecvTimeoutError};
use tokio::sync::Notify;

use crate::command::{Message, Question};
use crate::error::{Cause, LockError};
use crate::io::about_to_block;
use crate::process::Process;
use crate::shared::Queue;

/// The callers' end. Sending never blocks.
#[derive(Clone, Debug)]
pub(crate) struct Mailbox {
    shared: Arc<Shared>,
    /// Where the I/O thread is.
    process: Process,
}

/// The I/O thread's end. What still lies in it when it is dropped is dropped too, and with it every channel on which
/// somebody waits for an answer.
#[derive(Debug)]
pub(crate) struct Inbox {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    messages: Queue<Message>,
    /// Holds at most one wake-up, so a burst of messages costs one.
    bell: Notify,
    end: AtomicU8,
}

/// Whether the I/O thread still serves, and if not, why. Set by the I/O thread, or by whoever gives up waiting for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum End {
    /// It serves.
    Not = 0,
    /// The manager is being closed, or is closed.
    Closed = 1,
    /// The manager is closed, but etcd did not confirm that the session is gone.
    Unconfirmed = 2,
    /// The I/O thread died.
    Crashed = 3,
}

pub(crate) fn mailbox() -> (Mailbox, Inbox) {
    let shared =
        Arc::new(Shared { messages: Queue::new(), bell: Notify::new(), end: AtomicU8::new(End::Not as u8) });
    (Mailbox { shared: Arc::clone(&shared), process: Process::current() }, Inbox { shared })
}

/// Waits for the I/O thread's answer, for ever without a deadline.
///
/// Parks at once: an answer takes a commit of etcd's, so to spin before, as crossbeam's channels do, would never pay, and
/// of 64 threads that wait it would cost the I/O thread a third of its core.
pub(crate) fn wait_for<T>(answer: &Receiver<T>, deadline: Option<Instant>) -> Result<T, RecvTimeoutError> {
    about_to_block();
    match deadline {
        None => answer.recv_ref().map_err(|_| RecvTimeoutError::Disconnected),
        Some(deadline) => answer.recv_deadline(deadline),
    }
}

impl Mailbox {
    /// Leaves a message and wakes the I/O thread. An error once it serves no more.
    pub(crate) fn send(&self, message: Message) -> Result<(), LockError> {
        self.check_process()?;
        if self.end() == End::Not && self.shared.messages.push(message) {
            self.shared.bell.notify_one();
            return Ok(());
        }
        Err(self.gone())
    }

    /// Puts a question to the I/O thread and waits for the answer, at most `limit`.
    pub(crate) fn ask<T>(
        &self,
        limit: Duration,
        doing: &str,
        question: impl FnOnce(oneshot::Sender<Result<T, LockError>>) -> Question,
    ) -> Result<T, LockError> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Ask(question(reply)))?;
        match wait_for(&answer, Instant::now().checked_add(limit)) {
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
        self.check_process()?;
        if self.end() == End::Not { Ok(()) } else { Err(self.gone()) }
    }

    /// An error in a child of the process that made this. There, no lock may be waited for either: the thread that
    /// held it at the fork does not exist.
    pub(crate) fn check_process(&self) -> Result<(), LockError> {
        if self.process.is_current() { Ok(()) } else { Err(LockError::Forked) }
    }

    fn end(&self) -> End {
        self.shared.end()
    }

    /// The I/O thread hangs and the manager is closed without it: what it has not read is dropped, and with it every
    /// channel on which somebody waits for an answer. The thread closes down if it ever goes on.
    pub(crate) fn abandon(&self) {
        let _ = self.shared.end.fetch_max(End::Unconfirmed as u8, Ordering::AcqRel);
        self.shared.messages.close();
        self.shared.bell.notify_one();
    }

    /// In a forked child: drops the copies of what the I/O thread had not read.
    pub(crate) fn abandon_copy(&self) {
        self.shared.messages.abandon_copy();
    }

    /// What a call fails with whose answer will never come.
    pub(crate) fn gone(&self) -> LockError {
        if let Err(left) = self.check_process() {
            return left;
        }
        match self.end() {
            End::Closed | End::Unconfirmed => LockError::Closed,
            End::Not | End::Crashed => LockError::Crashed,
        }
    }

    /// What [`close`](crate::LockManager::close) says when the I/O thread has come to its end.
    pub(crate) fn closing_result(&self) -> Result<(), LockError> {
        match self.end() {
            End::Closed => Ok(()),
            End::Unconfirmed => Err(LockError::Unavailable {
                doing: "closing the session".into(),
                source: Cause::new("etcd did not confirm it in time; what is left expires with the lease"),
            }),
            End::Not | End::Crashed => Err(self.gone()),
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
    pub(crate) fn end(&self, end: End) {
        let _ = self.shared.end.fetch_max(end as u8, Ordering::AcqRel);
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.shared.messages.close();
    }
}

impl Shared {
    fn end(&self) -> End {
        match self.end.load(Ordering::Acquire) {
            0 => End::Not,
            1 => End::Closed,
            2 => End::Unconfirmed,
            _ => End::Crashed,
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
        let (mailbox, inbox) = mailbox();
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
        let (mailbox, inbox) = mailbox();
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
        let (mailbox, inbox) = mailbox();
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
        let (open, inbox) = mailbox();
        inbox.end(End::Closed);
        assert!(matches!(open.send(leave(1)), Err(LockError::Closed)));
        assert!(open.closing_result().is_ok());
        inbox.end(End::Crashed);
        assert!(matches!(open.send(leave(1)), Err(LockError::Crashed)));

        let (open, inbox) = mailbox();
        drop(inbox);
        assert!(matches!(open.send(leave(1)), Err(LockError::Crashed)));
    }

    #[test]
    fn dropping_the_inbox_tells_everybody_who_waits_for_an_answer() {
        let (open, inbox) = mailbox();
        let (reply, answer) = oneshot::channel();
        open.send(Message::Leave { ticket: Ticket(1), reply: Some(reply) }).unwrap();
        drop(inbox);
        assert!(answer.recv().is_err());
    }
}
