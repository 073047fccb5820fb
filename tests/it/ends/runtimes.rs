//! The library blocks, but works on the threads of a tokio runtime: it never enters that runtime, and its own runtime
//! is never dropped there.

use std::thread;

use etcd_lock::LockError;
use tokio::runtime::{Builder, Runtime};

use crate::support::logs::Logs;
use crate::support::process::alone;
use crate::support::{Backend, SOON, disconnects, on_both_stores, take, within};

on_both_stores! {
    everything_works_on_the_worker_of_a_runtime_with_many_threads,
    everything_works_inside_a_runtime_with_one_thread,
    everything_works_on_a_runtimes_thread_for_blocking_calls,
}

/// Connects, waits, times out, queries, closes and drops last handles, all on the calling thread.
fn do_everything(backend: &Backend) {
    let (manager, other) = (backend.manager(), backend.manager());
    let lock = manager.new_lock("a").unwrap();
    let guard = take(&lock);
    assert!(lock.try_lock().unwrap().is_none());
    let rival = other.new_lock("a").unwrap();
    assert!(rival.try_lock().unwrap().is_none());
    let refused = rival.lock_timeout(std::time::Duration::from_millis(5));
    assert!(matches!(refused, Err(LockError::Timeout { .. })), "{refused:?}");
    assert_eq!(manager.lock_info("a").unwrap().unwrap().token, guard.token());
    let pending = rival.enqueue().unwrap();
    backend.wait_for_contenders("a", 2);
    guard.unlock().unwrap();
    assert!(disconnects(pending.ready()));
    let guard = pending.wait().unwrap();

    // A close, and the drop of a last handle.
    manager.close().unwrap();
    drop((rival, other));
    assert!(guard.is_held());
    drop(guard);
    backend.wait_for_contenders("a", 0);
}

/// Runs with a limit: a runtime's thread that waits for itself would hang.
#[track_caller]
fn bounded(runtime: Runtime, action: impl FnOnce(Runtime) + Send) {
    thread::scope(|scope| {
        let thread = scope.spawn(move || action(runtime));
        crate::support::eventually(2 * SOON, "it does not hang", || thread.is_finished());
        thread.join().unwrap();
    });
}

fn everything_works_on_the_worker_of_a_runtime_with_many_threads(backend: &Backend) {
    let runtime = Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    // A task must own its values.
    let backend = backend.again();
    within(2 * SOON, "a worker does not hang", move || {
        runtime.block_on(async { tokio::spawn(async move { do_everything(&backend) }).await.unwrap() });
    });
}

fn everything_works_inside_a_runtime_with_one_thread(backend: &Backend) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    bounded(runtime, |runtime| runtime.block_on(async { do_everything(backend) }));
}

fn everything_works_on_a_runtimes_thread_for_blocking_calls(backend: &Backend) {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let backend = backend.again();
    within(2 * SOON, "a blocking call does not hang", move || {
        runtime.block_on(async {
            tokio::task::spawn_blocking(move || do_everything(&backend)).await.unwrap();
        });
    });
}

/// The warning that a call blocks an async task.
fn hints() -> Logs {
    Logs::with("inside an async task")
}

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

#[test]
fn a_call_that_blocks_in_an_async_task_is_reported_once_per_process() {
    alone("ends::runtimes::a_call_that_blocks_in_an_async_task_is_reported_once_per_process", SOON, || {
        let hints = hints();
        one_thread().block_on(async { do_everything(&Backend::memory("hint")) });
        assert_eq!(hints.of_level(log::Level::Warn).len(), usize::from(cfg!(debug_assertions)));
    });
}

#[test]
fn a_call_on_a_thread_that_may_block_is_not_reported() {
    alone("ends::runtimes::a_call_on_a_thread_that_may_block_is_not_reported", SOON, || {
        let hints = hints();
        do_everything(&Backend::memory("no-hint"));
        one_thread().block_on(async {
            tokio::task::spawn_blocking(|| do_everything(&Backend::memory("no-hint"))).await.unwrap();
        });
        assert_eq!(hints.lines(), []);
    });
}
