//! Explores the interleavings of a few threads with loom, on a second copy of the files of `shared` that uses loom's
//! primitives.
//!
//! There are no timers: the thread that moves a model's clock fires the watchdog's timer if it is due. A thread that
//! misses its wake-up sleeps for ever, which loom reports as a deadlock or as an endless loop.
#![allow(dead_code, reason = "the models need only a part of the files")]

#[allow(clippy::duplicate_mod, reason = "a second copy on loom's primitives")]
#[path = "../deadline.rs"]
mod deadline;
#[allow(clippy::duplicate_mod, reason = "a second copy on loom's primitives")]
#[path = "../hold_state.rs"]
mod hold_state;
#[allow(clippy::duplicate_mod, reason = "a second copy on loom's primitives")]
#[path = "../hold_table.rs"]
mod hold_table;
#[allow(clippy::duplicate_mod, reason = "a second copy on loom's primitives")]
#[path = "../message_queue.rs"]
mod message_queue;

/// Loom's primitives with the interface of those in `shared/sync.rs`.
mod sync {
    use std::time::Duration;

    use loom::sync::MutexGuard;
    pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, Ordering};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    #[derive(Debug)]
    pub(crate) struct Condvar(loom::sync::Condvar);

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::Mutex::new(value))
        }

        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap()
        }

        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
        }
    }

    impl Condvar {
        pub(crate) fn new() -> Self {
            Self(loom::sync::Condvar::new())
        }

        pub(crate) fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
            self.0.wait(guard).unwrap()
        }

        pub(crate) fn wait_for<'a, T>(&self, guard: MutexGuard<'a, T>, _: Duration) -> MutexGuard<'a, T> {
            self.wait(guard)
        }

        pub(crate) fn notify_all(&self) {
            self.0.notify_all();
        }
    }
}

use std::sync::Arc;

use crossbeam_channel::TryRecvError;
use loom::model::Builder;
use loom::thread;

use crate::clock::Time;
use crate::error::LossReason;
use crate::kv::Key;
use crate::name::{LockName, Root};
use crate::protocol::HoldId;
use crate::shared::tests::at;
use crate::stats::StatsCell;
use deadline::Deadline;
use hold_state::HoldState;
use hold_table::HoldTable;
use message_queue::MessageQueue;
use sync::{AtomicU64, Ordering};

/// How often a schedule preempts a thread that could continue. Most errors need one or two preemptions.
const PREEMPTIONS: usize = 3;

fn model(body: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS);
    builder.check(body);
}

/// A table whose session has its deadline at second 10.
fn table() -> Arc<HoldTable> {
    let table = HoldTable::new(Arc::new(StatsCell::default()));
    table.begin_session(Arc::new(Deadline::new(at(10))));
    Arc::new(table)
}

fn open(table: &HoldTable, now: Time, hold: u64) -> Arc<HoldState> {
    let name = LockName::parse(&Root::parse("/t").unwrap(), "a").unwrap();
    table.open(now, HoldId(hold), name, 7, Key::from("/t/a/1-1"))
}

fn is_closed(hold: &HoldState) -> bool {
    hold.done.try_recv() == Err(TryRecvError::Disconnected)
}

#[test]
fn readers_and_a_renewal_agree_about_a_deadline_at_its_instant() {
    model(|| {
        let deadline = Arc::new(Deadline::new(at(10)));
        let look = |deadline: &Arc<Deadline>| {
            let deadline = Arc::clone(deadline);
            thread::spawn(move || deadline.look(at(10)).is_ok())
        };
        let lookers = [look(&deadline), look(&deadline)];
        let extended = deadline.extend(at(20));
        for looker in lookers {
            assert_eq!(looker.join().unwrap(), extended);
        }
        assert_eq!(deadline.look(at(15)).is_ok(), extended);
    });
}

/// A release races with the end of the session and with its deadline: all guards report the first outcome.
#[test]
fn all_guards_of_a_hold_report_the_same_end() {
    model(|| {
        let deadline = Arc::new(Deadline::new(at(10)));
        let name = LockName::parse(&Root::parse("/t").unwrap(), "a").unwrap();
        let (_done, closed) = crossbeam_channel::bounded(0);
        let token = crate::info::FencingToken::new(7);
        let hold =
            Arc::new(HoldState::new(name, token, Key::from("/t/a/1-1"), closed, Arc::clone(&deadline)));
        let (looking, ending) = (Arc::clone(&hold), Arc::clone(&deadline));
        let looker = thread::spawn(move || (looking.loss(at(10)), looking.is_held(at(1)), looking.lost()));
        let ender = thread::spawn(move || ending.end(LossReason::SessionRevoked));
        let end = hold.end(None);
        let (first, held, then) = looker.join().unwrap();
        let session = ender.join().unwrap();
        assert!(!held, "a thread has seen the deadline pass");
        assert_eq!(first, then);
        assert_eq!(first, end, "the I/O thread reports the same end");
        assert_eq!(hold.lost(), end);
        assert!(end.is_none_or(|lost| lost == session));
        assert_eq!(deadline.instant(), Err(session));
    });
}

/// The deadline passes while a renewal extends it, while a hold is opened and while a caller looks.
#[test]
fn every_done_closes_after_the_deadline_in_every_interleaving() {
    model(|| {
        let (table, clock) = (table(), Arc::new(AtomicU64::new(9)));
        let watchdog = {
            let (table, clock) = (Arc::clone(&table), Arc::clone(&clock));
            thread::spawn(move || table.watch(|| at(clock.load(Ordering::SeqCst))))
        };
        let io = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let first = open(&table, at(9), 1);
                let extended = table.extend_session(at(20));
                (first, open(&table, at(9), 2), extended)
            })
        };
        clock.store(10, Ordering::SeqCst);
        table.fire_timer(at(10));
        let (first, second, extended) = io.join().unwrap();
        if extended {
            assert!(first.is_held(at(10)) && second.is_held(at(10)) && !is_closed(&first));
            clock.store(20, Ordering::SeqCst);
        } else {
            assert!(!first.is_held(at(9)) && is_closed(&second), "a hold opened after the end is closed");
        }
        // Until the watchdog has closed both.
        while !is_closed(&first) || !is_closed(&second) {
            table.fire_timer(at(clock.load(Ordering::SeqCst)));
            thread::yield_now();
        }
        // Loom does not model crossbeam's channels: a look into the table makes visible what happened before the
        // channel closed.
        table.fire_timer(at(1));
        assert_eq!(first.lost(), Some(LossReason::SessionExpired));
        assert_eq!(second.lost(), Some(LossReason::SessionExpired));
        table.shut(LossReason::Closed);
        watchdog.join().unwrap();
    });
}

/// While no lock is held the watchdog sleeps without a timer, so only the hold itself can wake it.
#[test]
fn opening_a_hold_wakes_the_watchdog_in_every_interleaving() {
    model(|| {
        let (table, clock) = (table(), Arc::new(AtomicU64::new(9)));
        let watchdog = {
            let (table, clock) = (Arc::clone(&table), Arc::clone(&clock));
            thread::spawn(move || table.watch(|| at(clock.load(Ordering::SeqCst))))
        };
        let hold = open(&table, at(9), 1);
        clock.store(10, Ordering::SeqCst);
        while !is_closed(&hold) {
            table.fire_timer(at(10));
            thread::yield_now();
        }
        table.shut(LossReason::Closed);
        watchdog.join().unwrap();
    });
}

/// `close()` stops waiting for the I/O thread while that thread opens a hold, loses its session and begins another.
#[test]
fn no_hold_is_open_after_the_table_was_shut() {
    model(|| {
        let table = table();
        let io = {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let first = open(&table, at(1), 1);
                let ended = table.end_session(LossReason::SessionRevoked);
                assert_eq!(ended.len(), 1);
                table.begin_session(Arc::new(Deadline::new(at(20))));
                let second = open(&table, at(1), 2);
                (first, ended[0].lost, second)
            })
        };
        table.shut(LossReason::Closed);
        table.watch(|| at(1));
        let (first, lost, second) = io.join().unwrap();
        assert!(is_closed(&first) && is_closed(&second));
        assert!(!first.is_held(at(1)) && !second.is_held(at(1)));
        assert_eq!(first.lost(), lost);
        assert_eq!(second.lost(), Some(LossReason::Closed));
    });
}

/// A message owns the channel on which its sender waits for an answer.
#[test]
fn no_message_stays_in_a_closed_queue_in_any_interleaving() {
    model(|| {
        let (queue, kept) = (Arc::new(MessageQueue::new()), Arc::new(()));
        let sender = {
            let (queue, kept) = (Arc::clone(&queue), Arc::clone(&kept));
            thread::spawn(move || {
                (queue.push(Arc::clone(&kept)), queue.push(kept)) // both, one or none
            })
        };
        let reader = {
            let queue = Arc::clone(&queue);
            thread::spawn(move || usize::from(queue.pop().is_some()))
        };
        queue.close();
        reader.join().unwrap();
        let sent = sender.join().unwrap();
        assert!(sent != (false, true), "no message enters a closed queue");
        assert_eq!(Arc::strong_count(&kept), 1);
        assert!(queue.pop().is_none());
    });
}
