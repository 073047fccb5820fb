//! Thread counts: two per manager, none after its end. Each test counts in a process of its own.

use std::time::Duration;

use etcd_lock::{LockManager, LockManagerOptions};

use crate::support::wait::threads_named;
use crate::support::{Backend, SOON, eventually, on_both_stores, take};

on_both_stores! { alone:
    a_manager_has_two_threads_and_none_after_its_close,
    a_manager_has_no_thread_after_the_drop_of_its_last_handle,
    a_refused_connection_leaves_no_thread,
}

/// Counts managers by their threads: one for I/O, and one watchdog. A backend may have a manager of its own.
#[track_caller]
fn count() -> usize {
    let io = || threads_named("etcd-lock-io");
    // A new thread takes a moment to set its own name.
    eventually(SOON, "a watchdog for each I/O thread", || threads_named("etcd-lock-watch") == io());
    io()
}

/// The system lists a thread for a moment after it can be joined.
#[track_caller]
fn wait_for_count(expected: usize) {
    eventually(SOON, "no other thread is left", || count() == expected);
}

fn a_manager_has_two_threads_and_none_after_its_close(backend: &Backend) {
    let (of_the_test, all) = (count(), threads_named(""));
    for _ in 0..3 {
        let managers: Vec<LockManager> = (0..4).map(|_| backend.manager()).collect();
        let guards: Vec<_> = managers
            .iter()
            .map(|manager| take(&manager.new_lock(&format!("{:p}", manager)).unwrap()))
            .collect();
        assert_eq!(count(), of_the_test + 4);
        for manager in managers {
            manager.close().unwrap();
        }
        // However many handles are left.
        wait_for_count(of_the_test);
        drop(guards);
    }
    // Helper threads, such as those that resolve host names, end as well.
    eventually(SOON, "all other threads are gone too", || threads_named("") <= all);
}

fn a_manager_has_no_thread_after_the_drop_of_its_last_handle(backend: &Backend) {
    let of_the_test = count();
    let manager = backend.manager();
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    let (clone, pending) = (guard.clone(), manager.new_lock("b").unwrap().enqueue().unwrap());
    drop((manager, lock, guard, clone));
    assert_eq!(count(), of_the_test + 1, "a pending lock still needs it");
    drop(pending);
    wait_for_count(of_the_test);
}

fn a_refused_connection_leaves_no_thread(_: &Backend) {
    let of_the_test = count();
    let options = LockManagerOptions::default().connect_timeout(Duration::from_millis(300));
    LockManager::connect(&["http://127.0.0.1:1"], "/nobody", options).expect_err("no server listens there");
    wait_for_count(of_the_test);
}
