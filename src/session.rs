//! What caller threads can read about the session by themselves, without I/O and without the I/O thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::clock::Time;
use crate::info::SessionInfo;
use crate::process::Process;
use crate::store::LeaseId;

/// The instant until which everything held under one session is assured. Every hold of the session shares it.
///
/// Two states: *open* until an instant, which only [`extend`](Self::extend) moves; and *over*, which has no exit. It is
/// over once [`end`](Self::end) was called, or once any thread has looked at it past its instant. So what one thread
/// has reported as expired cannot be revived by a renewal that arrives a moment later, for this or any other thread.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: AtomicU64,
    /// In which process the session is.
    process: Process,
}

/// The value of a deadline that is over: the clock's zero, which no deadline can lie at.
const OVER: u64 = 0;

impl Deadline {
    pub(crate) fn new(at: Time) -> Self {
        Self { at: AtomicU64::new(at.as_nanos()), process: Process::current() }
    }

    /// A deadline that is over from the start.
    pub(crate) fn over() -> Self {
        Self { at: AtomicU64::new(OVER), process: Process::current() }
    }

    /// The time left at `now`; `None` if it is over, for good.
    pub(crate) fn remaining(&self, now: Time) -> Option<Duration> {
        let mut at = self.at.load(Ordering::Acquire);
        loop {
            if at == OVER {
                return None;
            }
            let left = Time::from_nanos(at).since(now);
            if !left.is_zero() {
                return Some(left);
            }
            match self.at.compare_exchange(at, OVER, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return None,
                Err(moved) => at = moved,
            }
        }
    }

    /// Whether it lies ahead of `now`. Once this was false it is false for ever.
    pub(crate) fn is_live(&self, now: Time) -> bool {
        self.remaining(now).is_some()
    }

    /// Moves it. False if it is over: then it stays over.
    #[must_use]
    pub(crate) fn extend(&self, to: Time) -> bool {
        self.at
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |at| (at != OVER).then_some(to.as_nanos()))
            .is_ok()
    }

    /// False in a forked child: what is held under it is held by the parent.
    pub(crate) fn is_here(&self) -> bool {
        self.process.is_current()
    }

    /// It is over now, whatever the clock says.
    pub(crate) fn end(&self) {
        self.at.store(OVER, Ordering::Release);
    }
}

/// The session as [`LockManager::session`](crate::LockManager::session) shows it. Written by the I/O thread.
#[derive(Debug, Default)]
pub(crate) struct SessionCell(Mutex<Option<Standing>>);

#[derive(Debug)]
struct Standing {
    lease: LeaseId,
    ttl: Duration,
    deadline: Arc<Deadline>,
}

impl SessionCell {
    pub(crate) fn up(&self, lease: LeaseId, ttl: Duration, deadline: Arc<Deadline>) {
        *self.0.lock() = Some(Standing { lease, ttl, deadline });
    }

    /// Ends the session's deadline with it.
    pub(crate) fn down(&self) {
        if let Some(standing) = self.0.lock().take() {
            standing.deadline.end();
        }
    }

    pub(crate) fn info(&self, now: Time) -> SessionInfo {
        match &*self.0.lock() {
            None => SessionInfo::none(),
            Some(Standing { lease, ttl, deadline }) => {
                let remaining = deadline.remaining(now);
                SessionInfo {
                    lease_id: *lease,
                    ttl: *ttl,
                    remaining: remaining.unwrap_or_default(),
                    alive: remaining.is_some(),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn at(secs: u64) -> Time {
        Time::default() + Duration::from_secs(secs)
    }

    #[test]
    fn a_deadline_is_live_before_its_instant_and_can_be_moved() {
        let deadline = Deadline::new(at(10));
        assert_eq!(deadline.remaining(at(4)), Some(Duration::from_secs(6)));
        assert!(deadline.extend(at(20)));
        assert!(deadline.is_live(at(19)));
    }

    #[test]
    fn a_deadline_once_seen_past_is_never_revived() {
        let deadline = Deadline::new(at(10));
        assert!(!deadline.is_live(at(10)), "the instant itself is too late");
        assert!(!deadline.extend(at(30)));
        assert!(!deadline.is_live(at(1)));
    }

    #[test]
    fn a_deadline_nobody_saw_pass_can_still_be_extended() {
        let deadline = Deadline::new(at(10));
        assert!(deadline.extend(at(30)));
        assert!(deadline.is_live(at(11)));
    }

    #[test]
    fn an_ended_deadline_is_over_at_once() {
        let deadline = Deadline::new(at(10));
        deadline.end();
        assert_eq!(deadline.remaining(at(1)), None);
        assert!(!deadline.extend(at(30)));
        assert!(!Deadline::over().is_live(Time::default()));
    }

    /// Readers and an extender race at the instant itself: either nobody sees it pass, or everybody does from then on.
    #[test]
    fn threads_never_disagree_about_a_deadline() {
        for _ in 0..2000 {
            let deadline = Deadline::new(at(10));
            let (seen, extended) = thread::scope(|scope| {
                let readers: Vec<_> = (0..3).map(|_| scope.spawn(|| deadline.is_live(at(10)))).collect();
                let extender = scope.spawn(|| deadline.extend(at(20)));
                let seen: Vec<bool> = readers.into_iter().map(|reader| reader.join().unwrap()).collect();
                (seen, extender.join().unwrap())
            });
            assert!(seen.iter().all(|live| *live == extended), "{seen:?}, extended: {extended}");
            assert_eq!(deadline.is_live(at(15)), extended);
        }
    }

    #[test]
    fn the_cell_shows_the_session_that_stands() {
        let cell = SessionCell::default();
        assert_eq!(cell.info(at(1)).lease_id, 0);
        let deadline = Arc::new(Deadline::new(at(10)));
        cell.up(7, Duration::from_secs(12), Arc::clone(&deadline));
        let info = cell.info(at(4));
        assert_eq!((info.lease_id, info.alive, info.remaining), (7, true, Duration::from_secs(6)));
        assert!(!cell.info(at(11)).alive);
        cell.down();
        assert!(!deadline.is_live(at(1)));
        assert!(!cell.info(at(1)).alive);
    }
}
