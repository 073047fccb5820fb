//! An I/O thread played by a test, message by message.

use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;

use crate::client::Client;
use crate::clock;
use crate::driver::thread::IoThread;
use crate::info::FencingToken;
use crate::kv::Key;
use crate::lock::DistributedLock;
use crate::lock::registry::Registry;
use crate::name::Root;
use crate::options::{LockManagerOptions, LockOptions};
use crate::protocol::{Acquire, Refusal, Ticket};
use crate::shared::deadline::Deadline;
use crate::shared::hold_state::HoldState;
use crate::shared::mailbox::{Inbox, mailbox};
use crate::shared::message::{Grant, Left, Message, Outcome, Reply};
use crate::shared::report::Report;

/// Long enough for any machine, short enough to end a test that would hang.
pub(crate) const SOON: Duration = Duration::from_secs(20);

pub(crate) struct ScriptedIo {
    pub(crate) inbox: Inbox,
    pub(crate) deadline: Arc<Deadline>,
    next_token: i64,
    /// Dropping it ends the thread.
    _alive: Sender<()>,
}

/// A hold on the I/O thread's side; dropping `done` disconnects it.
pub(crate) struct ScriptedHold {
    pub(crate) state: Arc<HoldState>,
    pub(crate) done: Sender<()>,
}

pub(crate) fn scripted_locks() -> (Registry, ScriptedIo) {
    scripted_locks_with(LockManagerOptions::default())
}

pub(crate) fn scripted_locks_with(options: LockManagerOptions) -> (Registry, ScriptedIo) {
    let (alive, exited) = crossbeam_channel::bounded(0);
    let root = Root::parse("/test").unwrap();
    let report = Arc::new(Report::new());
    let (mailbox, inbox) = mailbox(&report);
    let client = Arc::new(Client::new(root, &options, mailbox, report, IoThread::scripted(exited)));
    let deadline = Arc::new(Deadline::new(clock::now() + Duration::from_secs(3600)));
    (Registry::new(client), ScriptedIo { inbox, deadline, next_token: 1, _alive: alive })
}

/// A handle of one of its locks.
pub(crate) fn lock(locks: &Registry, name: &str) -> DistributedLock {
    lock_with(locks, name, LockOptions::default())
}

pub(crate) fn lock_with(locks: &Registry, name: &str, options: LockOptions) -> DistributedLock {
    DistributedLock::new(locks.lock(name).unwrap(), options)
}

impl ScriptedIo {
    /// Waits for the next message.
    pub(crate) fn next(&self) -> Message {
        self.inbox.take_within(SOON).expect("a message")
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.inbox.is_empty()
    }

    pub(crate) fn acquire(&self) -> (Acquire, Reply) {
        match self.next() {
            Message::Acquire { acquire, reply } => (acquire, reply),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn leave(&self) -> (Ticket, Option<oneshot::Sender<Left>>) {
        match self.next() {
            Message::Leave { ticket, reply } => (ticket, reply),
            other => panic!("{other:?}"),
        }
    }

    /// Grants the next acquire.
    pub(crate) fn grant(&mut self) -> ScriptedHold {
        let (acquire, reply) = self.acquire();
        let hold = self.new_hold(&acquire);
        reply.answer(Ok(Grant { state: Arc::clone(&hold.state) }));
        hold
    }

    pub(crate) fn refuse(&self, refusal: Refusal) -> Acquire {
        let (acquire, reply) = self.acquire();
        reply.answer(Outcome::Err(refusal));
        acquire
    }

    pub(crate) fn new_hold(&mut self, acquire: &Acquire) -> ScriptedHold {
        let (done, closed) = crossbeam_channel::bounded(0);
        let token = FencingToken::new(self.next_token);
        self.next_token += 1;
        let name = acquire.name.clone();
        let state = HoldState::new(name, token, Key::from("/test/key"), closed, Arc::clone(&self.deadline));
        ScriptedHold { state: Arc::new(state), done }
    }
}
