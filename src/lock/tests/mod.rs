mod guard;
pub(crate) mod scripted_io;

use std::sync::Barrier;
use std::thread;

use super::*;
use crate::clock;
use crate::error::LossReason;
use crate::kv::{Failure, FailureClass};
use crate::lock::tests::scripted_io::{
    SOON, ScriptedHold, ScriptedIo, lock, lock_with, scripted_locks, scripted_locks_with,
};
use crate::options::LockManagerOptions;
use crate::protocol::Refusal;
use crate::shared::mailbox::Service;

const MS: Duration = Duration::from_millis(1);

/// Runs the call on a thread of its own while the test plays the I/O thread.
fn meanwhile<T: Send>(call: impl FnOnce() -> T + Send, io: impl FnOnce()) -> T {
    thread::scope(|scope| {
        let call = scope.spawn(call);
        io();
        call.join().unwrap()
    })
}

/// Acquires the lock on the current thread.
fn take(lock: &DistributedLock, io: &mut ScriptedIo) -> (LockGuard, ScriptedHold) {
    let pending = lock.enqueue().unwrap();
    let hold = io.grant();
    (pending.wait().unwrap(), hold)
}

#[test]
fn the_holding_thread_cannot_acquire_the_lock_again() {
    let (locks, mut io) = scripted_locks();
    let lock = lock(&locks, "a");
    let (_guard, _hold) = take(&lock, &mut io);
    let again = meanwhile(|| lock.try_lock(), || drop(io.refuse(Refusal::Held)));
    assert!(again.unwrap().is_none());
}

#[test]
fn the_mode_of_a_handle_goes_to_the_i_o_thread_and_into_its_errors() {
    let (locks, io) = scripted_locks();
    let permits = Mode::Permits { take: 2, limit: 8 };
    for (mode, remark) in [(Mode::Exclusive, ""), (Mode::Shared, " (shared)"), (permits, " (2 of 8 permits)")]
    {
        let lock = lock_with(&locks, "a", LockOptions::default().mode(mode));
        assert_eq!(lock.mode(), mode);
        let failure = Failure::new(FailureClass::NotDone, "no leader");
        let mut asked = None;
        let refused =
            meanwhile(|| lock.lock(), || asked = Some(io.refuse(Refusal::Unavailable(failure)).mode));
        assert_eq!(asked, Some(mode));
        let text = refused.unwrap_err().to_string();
        assert!(text.contains(&format!("acquiring lock \"a\"{remark}: ")), "{text}");
    }
}

/// A lock is its name: the modes of its handles are in one queue.
#[test]
fn handles_of_different_modes_share_a_lock_and_holds_of_any_mode_count() {
    let (locks, mut io) = scripted_locks();
    let reader = lock_with(&locks, "a", LockOptions::default().mode(Mode::Shared));
    let (first, _first) = take(&reader, &mut io);
    let (second, _second) = take(&reader, &mut io);
    let writer = lock(&locks, "a");
    drop(first);
    io.leave();
    assert!(writer.is_locked() && reader.is_locked(), "the second hold remains");
    drop(second);
    io.leave();
    assert!(!writer.is_locked() && !reader.is_locked());
}

#[test]
fn a_thread_with_a_lost_hold_can_acquire_the_lock_again() {
    let (locks, mut io) = scripted_locks();
    let lock = lock(&locks, "a");
    let (_lost, hold) = take(&lock, &mut io);
    hold.state.end(Some(LossReason::SessionRevoked));
    assert!(!lock.is_locked());
    let (_guard, _hold) = take(&lock, &mut io);
    assert!(lock.is_locked());
}

#[test]
fn a_hold_reports_its_waiting_time_and_its_age() {
    let (locks, mut io) = scripted_locks();
    let lock = lock(&locks, "a");
    let begun = Instant::now();
    let pending = lock.enqueue().unwrap();
    thread::sleep(20 * MS);
    let _hold = io.grant();
    let guard = pending.wait().unwrap();
    assert!(guard.waited() >= 20 * MS);
    thread::sleep(20 * MS);
    assert!(guard.held_for() >= 20 * MS && guard.waited() + guard.held_for() <= begun.elapsed());
}

#[test]
fn wait_limits_follow_from_the_call_and_the_options() {
    let (locks, io) = scripted_locks();
    let limits = |lock: &DistributedLock, call: &(dyn Fn(&DistributedLock) + Sync)| {
        let mut limits = None;
        meanwhile(|| call(lock), || limits = Some(io.refuse(Refusal::Cancelled).limits));
        limits.unwrap()
    };
    let forever = lock(&locks, "a");
    let within = |at: Option<Time>, secs: u64| {
        let left = at.unwrap().since(clock::now());
        left <= Duration::from_secs(secs) && left + SOON > Duration::from_secs(secs)
    };
    assert_eq!(limits(&forever, &|lock| drop(lock.lock())), WaitLimits::default());
    let tried = limits(&forever, &|lock| drop(lock.try_lock()));
    assert!(tried.try_only && tried.deadline.is_none() && within(tried.budget, 5));
    let timed = limits(&forever, &|lock| drop(lock.lock_timeout(Duration::from_secs(60))));
    assert!(!timed.try_only && timed.budget.is_none() && within(timed.deadline, 60));
    let overflow = limits(&forever, &|lock| drop(lock.lock_timeout(Duration::MAX)));
    assert_eq!(overflow, WaitLimits::default());

    let options = LockOptions::default().retry_interval(Duration::from_secs(9)).max_retries(10);
    let limited = lock_with(&locks, "a", options);
    let both = limits(&limited, &|lock| drop(lock.lock_timeout(Duration::from_secs(60))));
    assert!(within(both.budget, 90) && within(both.deadline, 60));
    assert!(within(
        limits(&limited, &|lock| drop(lock.lock_or_cancel(&crossbeam_channel::never()))).budget,
        90
    ));
}

#[test]
fn every_refusal_maps_to_its_error() {
    let (locks, io) = scripted_locks();
    let lock = lock(&locks, "a");
    let refused = |refusal: Refusal| meanwhile(|| lock.lock().unwrap_err(), || drop(io.refuse(refusal)));
    let timeout = refused(Refusal::Timeout { waited: 3 * MS, holder: None });
    assert!(matches!(timeout, LockError::Timeout { waited, holder: None, .. } if waited == 3 * MS));
    assert!(matches!(refused(Refusal::Closed), LockError::Closed));
    assert!(matches!(refused(Refusal::Cancelled), LockError::Cancelled { .. }));
    let failure = |class| crate::kv::Failure::new(class, "because");
    let full = refused(Refusal::Failed(failure(crate::kv::FailureClass::NoSpace)));
    assert!(matches!(full, LockError::NoSpace));
    let away = refused(Refusal::Unavailable(failure(crate::kv::FailureClass::NotDone)));
    assert_eq!(away.to_string(), "etcd is unavailable while acquiring lock \"a\": because");
    let held = meanwhile(|| lock.try_lock(), || drop(io.refuse(Refusal::Held)));
    assert!(held.unwrap().is_none());
}

#[test]
fn an_error_names_the_holder() {
    let (locks, io) = scripted_locks();
    let lock = lock(&locks, "a");
    let value =
        crate::contender_value::ContenderValue::new("rack-7", "1", 1, Duration::from_secs(1)).encode();
    let kv = crate::kv::KeyValue {
        key: "/test/a/1-1".into(),
        value,
        create_revision: 42,
        mod_revision: 42,
        lease: 1,
    };
    let holder = Some(crate::protocol::CurrentHolder { kv, waiters: 2 });
    let error = meanwhile(
        || lock.lock_timeout(SOON).unwrap_err(),
        || drop(io.refuse(Refusal::Timeout { waited: MS, holder })),
    );
    let LockError::Timeout { holder: Some(holder), .. } = &error else { panic!("{error:?}") };
    assert_eq!((holder.token.as_u64(), holder.waiters), (42, 2));
    assert!(error.to_string().ends_with("held by rack-7"), "{error}");
}

/// The I/O thread hangs and never answers.
#[test]
fn a_call_returns_soon_after_its_limit_even_if_the_i_o_thread_hangs() {
    let options = LockManagerOptions::default().request_timeout(20 * MS);
    let (locks, io) = scripted_locks_with(options);
    let lock = lock(&locks, "a");
    let begun = Instant::now();
    let error = lock.lock_timeout(30 * MS).unwrap_err();
    // Whether the lock is held is not known.
    assert!(matches!(error, LockError::Unavailable { .. }), "{error:?}");
    assert!(begun.elapsed() >= 30 * MS);
    let (asked, _reply) = io.acquire();
    assert_eq!(io.leave().0, asked.ticket);
    assert!(matches!(lock.try_lock(), Err(LockError::Unavailable { .. })));
    let (asked, _reply) = io.acquire();
    assert_eq!(io.leave().0, asked.ticket);
    let limited = lock_with(&locks, "a", LockOptions::default().retry_interval(MS).max_retries(20));
    let (cancel, cancelled) = crossbeam_channel::bounded::<()>(0);
    assert!(matches!(limited.lock_or_cancel(&cancelled), Err(LockError::Unavailable { .. })));
    drop(cancel);
}

#[test]
fn a_cancelled_call_sends_no_message_or_leaves_and_waits_for_the_confirmation() {
    let (locks, io) = scripted_locks();
    let lock = lock(&locks, "a");
    let (cancel, cancelled) = crossbeam_channel::bounded::<()>(1);
    cancel.send(()).unwrap();
    assert!(matches!(lock.lock_or_cancel(&cancelled), Err(LockError::Cancelled { .. })));
    assert!(io.is_idle());

    let error = meanwhile(
        || lock.lock_or_cancel(&cancelled),
        || {
            let (asked, _reply) = io.acquire();
            drop(cancel);
            let (left, gone) = io.leave();
            assert_eq!(left, asked.ticket);
            gone.unwrap().send(Ok(())).unwrap();
        },
    );
    assert!(matches!(error, Err(LockError::Cancelled { .. })));
    assert!(io.is_idle(), "it sends one Leave");
}

#[test]
fn a_grant_that_crosses_the_cancellation_is_released_by_the_i_o_thread() {
    let (locks, mut io) = scripted_locks();
    let lock = lock(&locks, "a");
    let (cancel, cancelled) = crossbeam_channel::bounded::<()>(0);
    let error = meanwhile(
        || lock.lock_or_cancel(&cancelled),
        || {
            let (acquire, reply) = io.acquire();
            drop(cancel);
            let (_, gone) = io.leave();
            let hold = io.new_hold(&acquire);
            reply.answer(Ok(crate::shared::message::Grant { state: hold.state }));
            drop(gone);
        },
    );
    assert!(matches!(error, Err(LockError::Cancelled { .. })));
    assert!(!lock.is_locked());
}

#[test]
fn a_hold_lost_before_it_reaches_the_caller_is_requested_again() {
    let (locks, mut io) = scripted_locks();
    let lock = lock(&locks, "a");
    let guard = meanwhile(
        || lock.lock().unwrap(),
        || {
            let (acquire, reply) = io.acquire();
            let hold = io.new_hold(&acquire);
            hold.state.end(Some(LossReason::SessionExpired));
            reply.answer(Ok(crate::shared::message::Grant { state: hold.state }));
            io.leave();
            let hold = io.grant();
            std::mem::forget(hold.done);
        },
    );
    assert!(guard.is_held());
    assert_eq!(guard.token().as_u64(), 2);
}

#[test]
fn waiting_calls_return_how_the_i_o_thread_ended() {
    for (end, closed) in [(Service::Closed, true), (Service::Crashed, false)] {
        let (locks, io) = scripted_locks();
        let lock = lock(&locks, "a");
        let error = meanwhile(
            || lock.lock().unwrap_err(),
            || {
                let (_acquire, reply) = io.acquire();
                io.inbox.end(end);
                drop(io);
                drop(reply);
            },
        );
        assert_eq!(matches!(error, LockError::Closed), closed, "{error:?}");
        assert_eq!(matches!(lock.try_lock(), Err(LockError::Closed)), closed);
    }
}

#[test]
fn handles_of_one_name_share_a_lock_and_handles_of_other_names_do_not() {
    let (locks, mut io) = scripted_locks();
    let (guard, _hold) = take(&lock(&locks, "a"), &mut io);
    assert!(lock(&locks, "a").is_locked(), "the guard holds the lock");
    assert!(!lock(&locks, "a/").is_locked());
    drop(guard);
    assert!(!lock(&locks, "a").is_locked());
}

#[test]
fn the_registry_drops_unused_names() {
    let (locks, _io) = scripted_locks();
    let kept: Vec<_> = (0..1000).map(|n| lock(&locks, &format!("kept-{n}"))).collect();
    for n in 0..1_000_000 {
        drop(lock(&locks, &n.to_string()));
    }
    assert!((1000..=2000).contains(&locks.len()), "{}", locks.len());
    assert!(kept.iter().all(|kept| Arc::ptr_eq(&kept.shared, &lock(&locks, kept.key()).shared)));
    drop(kept);
    for n in 0..2000 {
        drop(lock(&locks, &n.to_string()));
    }
    assert!(locks.len() <= 64, "{}", locks.len());
}

#[test]
fn handles_created_and_dropped_on_many_threads_share_one_lock() {
    let (locks, _io) = scripted_locks();
    let barrier = Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                for _ in 0..20_000 {
                    let one = lock(&locks, "a");
                    let two = lock(&locks, "a");
                    assert!(Arc::ptr_eq(&one.shared, &two.shared));
                }
            });
        }
    });
    assert_eq!(locks.len(), 1);
}
