//! Read-write locks: readers together, writers alone, and strict order of arrival.

use std::thread;
use std::time::Duration;

use etcd_lock::{LockError, LockState, Mode};

use super::{a, all_granted, is_refused, queue_for_a, take_a, txns};
use crate::support::manager::{assert_still_waiting, granted};
use crate::support::{Backend, lease_of, on_both_stores, wait_for_waiting};

const READ: Mode = Mode::Shared;
const WRITE: Mode = Mode::Exclusive;

on_both_stores! {
    readers_of_several_managers_hold_it_together_and_a_writer_alone,
    a_waiting_writer_is_not_overtaken_by_later_readers,
    a_waiting_reader_is_not_overtaken_by_later_writers,
    threads_of_one_manager_are_admitted_in_the_order_of_their_arrival,
    readers_that_wait_for_one_writer_are_admitted_together,
    reads_and_tries_without_a_writer_cost_one_transaction_each,
    many_readers_of_one_manager_hold_it_together,
    a_second_read_waits_behind_a_writer_that_came_between_and_names_the_own_hold,
    tokens_grow_from_each_writer_to_all_that_come_after_it,
    a_reentrant_lock_is_a_writer,
}

fn readers_of_several_managers_hold_it_together_and_a_writer_alone(backend: &Backend) {
    let (alice, bob) = (backend.manager(), backend.manager());
    let readers = [take_a(&alice, READ), take_a(&bob, READ), take_a(&alice, READ), take_a(&bob, READ)];
    assert!(readers.iter().all(|guard| guard.is_held() && guard.mode() == READ));
    assert!(readers.iter().all(|guard| guard.keys() == ["a"]));
    assert!(alice.new_lock("a").unwrap().is_locked(), "held in some mode");
    assert_eq!((alice.stats().held, backend.contenders("a")), (2, 4));
    assert!(is_refused(&alice, WRITE) && is_refused(&bob, WRITE));

    let writer = queue_for_a(&bob, WRITE);
    for guard in readers {
        assert_still_waiting(&writer);
        guard.unlock().unwrap();
    }
    let writer = granted(writer);
    assert_eq!(writer.mode(), WRITE);
    assert!([READ, WRITE].iter().all(|&mode| is_refused(&alice, mode) && is_refused(&bob, mode)));
    drop(writer);
    backend.wait_for_contenders("a", 0);
    assert!(a(&alice, READ).try_lock().unwrap().is_some());
}

fn a_waiting_writer_is_not_overtaken_by_later_readers(backend: &Backend) {
    let [first, second, third] = [(); 3].map(|()| backend.manager());
    let reader = take_a(&first, READ);
    let writer = queue_for_a(&second, WRITE);
    backend.wait_for_contenders("a", 2);
    // From another process, from the reader's, and from the writer's, where it has no key while the writer waits.
    let late = [&third, &first, &second].map(|manager| queue_for_a(manager, READ));
    backend.wait_for_contenders("a", 4);
    wait_for_waiting(&second, 2);
    assert!([&first, &second, &third].iter().all(|manager| is_refused(manager, READ)));
    late.iter().for_each(assert_still_waiting);
    drop(reader);
    let writer = granted(writer);
    late.iter().for_each(assert_still_waiting);
    drop(writer);
    let late = all_granted(late);
    assert!(late.iter().all(|guard| guard.is_held()), "together");
}

fn a_waiting_reader_is_not_overtaken_by_later_writers(backend: &Backend) {
    let [first, second, third] = [(); 3].map(|()| backend.manager());
    let holder = take_a(&first, WRITE);
    let reader = queue_for_a(&second, READ);
    backend.wait_for_contenders("a", 2);
    let writer = queue_for_a(&third, WRITE);
    backend.wait_for_contenders("a", 3);
    drop(holder);
    let reader = granted(reader);
    assert_still_waiting(&writer);
    assert!(reader.is_held());
    drop(reader);
    assert!(granted(writer).is_held());
}

fn threads_of_one_manager_are_admitted_in_the_order_of_their_arrival(backend: &Backend) {
    let manager = backend.manager();
    let holder = take_a(&manager, WRITE);
    let modes = [READ, READ, WRITE, READ, READ, READ, WRITE, WRITE, READ];
    let mut queue: Vec<_> = modes.iter().map(|&mode| queue_for_a(&manager, mode)).collect();
    wait_for_waiting(&manager, modes.len() as u64);
    drop(holder);
    for (together, left) in [(2, 7), (1, 6), (3, 3), (1, 2), (1, 1), (1, 0)] {
        let guards: Vec<_> = queue.drain(..together).map(granted).collect();
        assert!(guards.iter().all(|guard| guard.is_held()));
        assert_eq!(queue.len(), left);
        if let Some(next) = queue.first() {
            assert_still_waiting(next);
        }
        assert_eq!((manager.stats().held, manager.stats().waiting), (together as u64, left as u64));
    }
}

fn readers_that_wait_for_one_writer_are_admitted_together(backend: &Backend) {
    let (writing, reading, alone) = (backend.manager(), backend.manager(), backend.manager());
    let writer = take_a(&writing, WRITE);
    let readers = [&reading, &alone, &reading, &reading].map(|manager| queue_for_a(manager, READ));
    backend.wait_for_contenders("a", 5);
    let shown = alone.queue("a").unwrap();
    assert_eq!((shown[0].state, shown[0].waiters), (LockState::Held, 4));
    assert!(shown[1..].iter().all(|info| (info.mode, info.state) == (READ, LockState::Waiting)));
    drop(writer);
    let readers = all_granted(readers);
    let shown = alone.queue("a").unwrap();
    assert_eq!(shown.len(), 4);
    assert!(shown.iter().all(|info| (info.state, info.waiters) == (LockState::Held, 0)), "{shown:#?}");
    drop(readers);
}

fn reads_and_tries_without_a_writer_cost_one_transaction_each(backend: &Backend) {
    let (other, manager) = (backend.manager(), backend.manager());
    let _others = [take_a(&other, READ), take_a(&other, READ), take_a(&other, READ)];
    for others in [3, 4] {
        let before = manager.stats();
        let guard = a(&manager, READ).lock().unwrap();
        assert_eq!(txns(&manager, &before), 1, "a read beside {others} others");
        guard.unlock().unwrap();
        assert_eq!(txns(&manager, &before), 2, "its release");

        let before = manager.stats();
        let guard = a(&manager, READ).try_lock().unwrap().expect("there is no writer");
        assert_eq!(txns(&manager, &before), 1, "a try beside {others} others");
        guard.unlock().unwrap();

        let before = manager.stats();
        assert!(is_refused(&manager, WRITE));
        assert_eq!(txns(&manager, &before), 1, "a writer's try that is refused");
    }
}

fn many_readers_of_one_manager_hold_it_together(backend: &Backend) {
    const READERS: usize = 100;
    let manager = backend.manager();
    let lock = a(&manager, READ);
    let pending: Vec<_> = (0..READERS).map(|_| lock.enqueue().unwrap()).collect();
    let guards: Vec<_> = pending.into_iter().map(granted).collect();
    assert_eq!((manager.stats().held, backend.contenders("a")), (READERS as u64, READERS));
    let writer = queue_for_a(&manager, WRITE);
    thread::scope(|scope| {
        for guard in guards {
            scope.spawn(move || guard.unlock().unwrap());
        }
    });
    assert!(granted(writer).is_held());
}

fn a_second_read_waits_behind_a_writer_that_came_between_and_names_the_own_hold(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let first = take_a(&manager, READ);
    let writer = queue_for_a(&other, WRITE);
    backend.wait_for_contenders("a", 2);
    // A call on a busy machine may end before it has read the holder.
    let holder = (0..20)
        .find_map(|_| match a(&manager, READ).lock_timeout(Duration::from_millis(200)) {
            Err(LockError::Timeout { holder, .. }) => holder,
            other => panic!("{other:?}"),
        })
        .expect("one of the calls names the holder");
    assert_eq!((holder.token, holder.mode), (first.token(), READ));
    assert_eq!((holder.lease_id, holder.pid), (Some(lease_of(&manager)), Some(std::process::id())));
    assert!(holder.thread.is_some());
    assert_still_waiting(&writer);
    drop(first);
    drop(granted(writer));
    assert!(take_a(&manager, READ).is_held());
}

/// What a receiver of tokens relies on: see the guide.
fn tokens_grow_from_each_writer_to_all_that_come_after_it(backend: &Backend) {
    let (alice, bob) = (backend.manager(), backend.manager());
    let mut writers = 0;
    let mut greatest = 0;
    for round in 0..4 {
        let (one, other) = if round % 2 == 0 { (&alice, &bob) } else { (&bob, &alice) };
        let writer = take_a(one, WRITE);
        assert!(writer.token().as_u64() > greatest, "a writer's exceeds all before it");
        writers = writer.token().as_u64();
        let readers = [one, other, one].map(|manager| queue_for_a(manager, READ));
        drop(writer);
        for reader in all_granted(readers) {
            assert!(reader.token().as_u64() > writers, "a reader's exceeds those of all writers before it");
            greatest = greatest.max(reader.token().as_u64());
        }
    }
    assert!(writers < greatest);
}

fn a_reentrant_lock_is_a_writer(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let reader = take_a(&other, READ);
    let lock = manager.new_reentrant_lock("a").unwrap();
    assert!(lock.try_lock().unwrap().is_none());
    drop(reader);
    backend.wait_for_contenders("a", 0);
    let outer = lock.lock().unwrap();
    assert_eq!(outer.mode(), WRITE);
    // Only a reentrant handle re-enters: a read by the same thread waits.
    assert!(is_refused(&manager, READ));
    assert_eq!(lock.lock().unwrap().token(), outer.token());
}
