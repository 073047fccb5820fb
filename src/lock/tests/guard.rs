use std::cell::RefCell;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::Duration;

use crate::clock;
use crate::error::{LockError, LossReason};
use crate::kv::{Failure, FailureClass};
use crate::lock::guard::LockGuard;
use crate::lock::registry::Registry;
use crate::lock::tests::scripted_io::{
    SOON, ScriptedHold, ScriptedIo, lock, scripted_locks, scripted_locks_with,
};
use crate::options::LockManagerOptions;
use crate::protocol::ReleaseFailure;
use crate::shared::mailbox::Service;
use crate::shared::message::Left;

/// A guard of a lock named `a`, with the manager that must outlive it.
fn guard() -> (Registry, LockGuard, ScriptedHold, ScriptedIo) {
    let (locks, mut io) = scripted_locks();
    let pending = lock(&locks, "a").enqueue().unwrap();
    let hold = io.grant();
    (locks, pending.wait().unwrap(), hold, io)
}

/// Unlocks while the I/O thread, played by the test, gives this answer.
fn unlock_answered(answer: Left) -> Result<(), LockError> {
    let (_locks, guard, _hold, io) = guard();
    thread::scope(|scope| {
        let unlocking = scope.spawn(|| guard.unlock());
        io.leave().1.unwrap().send(answer).unwrap();
        unlocking.join().unwrap()
    })
}

#[test]
fn guards_can_be_sent_and_shared() {
    fn sendable<T: Send + Sync + 'static>() {}
    sendable::<LockGuard>();
    sendable::<crate::LockManager>();
    sendable::<crate::DistributedLock>();
    sendable::<crate::PendingLock>();
    sendable::<LockError>();
}

#[test]
fn a_guard_describes_its_hold() {
    let (_locks, guard, _hold, _io) = guard();
    assert_eq!((guard.key(), guard.etcd_key(), guard.token().as_u64()), ("a", "/test/key", 1));
    assert!(guard.is_held());
    assert_eq!(guard.loss(), None);
    assert!(guard.remaining() > Duration::from_secs(3000));
    assert!(format!("{guard:?}").contains("held: true"));
}

#[test]
fn only_the_last_guard_releases() {
    let (_locks, guard, _hold, io) = guard();
    let other = guard.clone();
    drop(guard);
    assert!(io.is_idle());
    assert!(other.clone().unlock().is_ok(), "a guard that is not the last is only dropped");
    assert!(io.is_idle());
    thread::spawn(move || drop(other)).join().unwrap();
    assert!(io.leave().1.is_none());
    assert!(io.is_idle());
}

#[test]
fn of_guards_that_unlock_concurrently_exactly_one_releases() {
    for _ in 0..300 {
        let (_locks, guard, _hold, io) = guard();
        let guards = [guard.clone(), guard.clone(), guard.clone(), guard];
        thread::scope(|scope| {
            for guard in guards {
                scope.spawn(|| guard.unlock().unwrap());
            }
            io.leave().1.unwrap().send(Ok(())).unwrap();
        });
        assert!(io.is_idle());
    }
}

/// The scripted I/O thread does nothing here: the clock alone ends the hold.
#[test]
fn a_hold_past_its_deadline_is_lost_for_good() {
    let (_locks, guard, _hold, io) = guard();
    assert!(io.deadline.extend(clock::now()));
    assert!(!guard.is_held());
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    assert_eq!(guard.remaining(), Duration::ZERO);
    assert!(!io.deadline.extend(clock::now() + SOON), "no renewal revives it");
    assert!(!guard.is_held());
    assert!(matches!(guard.ensure(Duration::ZERO), Err(LockError::Expired { .. })));
}

#[test]
fn the_first_reason_of_a_loss_is_final() {
    let (_locks, guard, hold, io) = guard();
    hold.state.end(Some(LossReason::SessionRevoked));
    io.deadline.end(LossReason::Closed);
    assert!(!guard.is_held());
    assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
    assert_eq!(hold.state.end(Some(LossReason::Crashed)), Some(LossReason::SessionRevoked));
}

/// Also while the I/O thread is between the end of the session and the end of its holds.
#[test]
fn the_end_of_a_session_ends_its_holds_with_the_same_reason() {
    let (_locks, guard, hold, io) = guard();
    io.deadline.end(LossReason::SessionRevoked);
    assert!(!guard.is_held() && hold.state.has_ended());
    assert_eq!(guard.loss(), Some(LossReason::SessionRevoked));
    assert_eq!(hold.state.end(None), Some(LossReason::SessionRevoked), "too late to be released");
    assert!(matches!(guard.unlock(), Err(LockError::Expired { reason: LossReason::SessionRevoked, .. })));
}

#[test]
fn a_hold_released_before_the_session_ended_was_not_lost() {
    let (_locks, guard, hold, io) = guard();
    assert_eq!(hold.state.end(None), None);
    io.deadline.end(LossReason::SessionRevoked);
    assert!(!guard.is_held());
    assert_eq!((guard.loss(), hold.state.lost()), (None, None));
}

#[test]
fn done_closes_with_the_hold() {
    let (_locks, guard, hold, _io) = guard();
    assert!(guard.done().try_recv().is_err_and(|error| error.is_empty()));
    hold.state.end(Some(LossReason::ForceUnlocked));
    drop(hold.done);
    assert!(guard.done().recv_timeout(SOON).is_err_and(|error| error.is_disconnected()));
    assert_eq!(guard.loss(), Some(LossReason::ForceUnlocked));
}

#[test]
fn a_refused_ensure_does_not_end_the_hold() {
    let (_locks, guard, _hold, io) = guard();
    assert!(io.deadline.extend(clock::now() + Duration::from_secs(60)));
    assert_eq!(guard.ensure(Duration::from_secs(30)).unwrap(), guard.token());
    let short = guard.ensure(Duration::from_secs(90));
    assert!(
        matches!(short, Err(LockError::InsufficientTime { remaining, needed, .. }) if remaining < needed)
    );
    assert!(guard.is_held());
    assert_eq!(guard.loss(), None);
}

#[test]
fn unlock_returns_the_answer_of_etcd() {
    assert!(unlock_answered(Ok(())).is_ok());
    let lost = unlock_answered(Err(ReleaseFailure::Lost(LossReason::SessionRevoked)));
    assert!(matches!(lost, Err(LockError::Expired { reason: LossReason::SessionRevoked, .. })));
    let deleted = unlock_answered(Err(ReleaseFailure::NotHeld));
    assert!(matches!(deleted, Err(LockError::Expired { reason: LossReason::ForceUnlocked, .. })));
    let failure = Failure::new(FailureClass::PermissionDenied, "no");
    let denied = unlock_answered(Err(ReleaseFailure::Failed(failure)));
    assert!(matches!(denied, Err(LockError::PermissionDenied { .. })));
}

#[test]
fn unlocking_a_lost_hold_returns_expired_without_waiting() {
    let (_locks, guard, hold, io) = guard();
    hold.state.end(Some(LossReason::ForceUnlocked));
    let lost = guard.unlock();
    assert!(matches!(lost, Err(LockError::Expired { reason: LossReason::ForceUnlocked, .. })));
    assert!(io.leave().1.is_none(), "no confirmation is requested");
}

#[test]
fn an_unconfirmed_unlock_returns_unavailable() {
    let options = LockManagerOptions::default().request_timeout(Duration::from_millis(20));
    let (locks, mut io) = scripted_locks_with(options);
    let pending = lock(&locks, "a").enqueue().unwrap();
    let _hold = io.grant();
    assert!(matches!(pending.wait().unwrap().unlock(), Err(LockError::Unavailable { .. })));
    io.leave();
    assert!(io.is_idle(), "it sent one Leave");
}

#[test]
fn unlocking_after_the_end_of_the_i_o_thread_returns_how_it_ended() {
    let (_locks, guard, hold, io) = guard();
    io.inbox.end(Service::Closed);
    assert!(matches!(guard.clone().unlock(), Ok(())));
    hold.state.end(Some(LossReason::Closed));
    drop(io);
    for guard in [guard.clone(), guard] {
        assert!(matches!(guard.unlock(), Err(LockError::Expired { reason: LossReason::Closed, .. })));
    }

    let (_locks, guard, _hold, io) = self::guard();
    drop(io);
    assert!(matches!(guard.unlock(), Err(LockError::Crashed)));
}

#[test]
fn unlocking_while_the_manager_is_closing_returns_expired() {
    let (_locks, guard, _hold, io) = guard();
    io.inbox.end(Service::Closed);
    assert!(guard.is_held(), "the hold ends a moment later");
    assert!(matches!(guard.unlock(), Err(LockError::Expired { reason: LossReason::Closed, .. })));
}

#[test]
fn a_guard_dropped_by_a_panic_releases() {
    let (_locks, guard, _hold, io) = guard();
    let panicked = panic::catch_unwind(AssertUnwindSafe(move || {
        let _guard = guard;
        panic::resume_unwind(Box::new("on purpose"));
    }));
    assert!(panicked.is_err());
    io.leave();
}

#[test]
fn a_guard_dropped_with_a_thread_s_local_values_releases() {
    thread_local! {
        static KEPT: RefCell<Option<LockGuard>> = const { RefCell::new(None) };
    }
    let (_locks, guard, _hold, io) = guard();
    thread::spawn(move || KEPT.set(Some(guard))).join().unwrap();
    io.leave();
}
