//! Warns callers in async code: a blocking call there stops all other tasks of the thread.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use tokio::runtime::Handle;
use tokio::task::coop::{RestoreOnPending, has_budget_remaining, poll_proceed};

use crate::log_target::LOG;

/// Twice tokio's budget of a task for one poll, which is 128.
const MORE_THAN_A_BUDGET: usize = 256;

/// Warns when an async task is about to block its thread: once per process, and only with `debug_assertions`.
pub(crate) fn about_to_block() {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if cfg!(debug_assertions)
        && !WARNED.load(Ordering::Relaxed)
        && in_async_task()
        && !WARNED.swap(true, Ordering::Relaxed)
    {
        log::warn!(
            target: LOG,
            "a blocking call of etcd-lock inside an async task stops every other task of its thread; \
             call it in tokio::task::spawn_blocking (logged once, in debug builds only)"
        );
    }
}

/// Whether the caller runs in an async task of tokio, which must not block.
///
/// A runtime handle alone does not show it: threads of `spawn_blocking` have one, too. But tokio limits each poll of a
/// task by a budget, which [`poll_proceed`] consumes; where blocking is allowed there is no limit. The consumed units
/// are all restored.
fn in_async_task() -> bool {
    if Handle::try_current().is_err() {
        return false;
    }
    let mut cx = Context::from_waker(Waker::noop());
    let mut taken: Vec<RestoreOnPending> = Vec::new();
    while has_budget_remaining() && taken.len() < MORE_THAN_A_BUDGET {
        match poll_proceed(&mut cx) {
            Poll::Ready(unit) => taken.push(unit),
            Poll::Pending => break,
        }
    }
    let is_limited = !has_budget_remaining();
    // Each unit restores the budget as it was before it, so drop them in reverse order.
    while taken.pop().is_some() {}
    is_limited
}

#[cfg(test)]
mod tests {
    use tokio::runtime::{Builder, Runtime};
    use tokio::task::{block_in_place, spawn, spawn_blocking};

    use super::*;

    fn many_threads() -> Runtime {
        Builder::new_multi_thread().worker_threads(1).build().unwrap()
    }

    #[test]
    fn a_task_on_a_worker_thread_is_detected_whatever_its_remaining_budget() {
        let found = many_threads().block_on(async {
            spawn(async {
                let fresh = (in_async_task(), has_budget_remaining());
                let mut cx = Context::from_waker(Waker::noop());
                while let Poll::Ready(unit) = poll_proceed(&mut cx) {
                    unit.made_progress();
                }
                (fresh, in_async_task(), has_budget_remaining())
            })
            .await
        });
        assert_eq!(found.unwrap(), ((true, true), true, false), "and nothing of the budget is lost or won");
    }

    #[test]
    fn the_main_task_is_detected_in_either_runtime() {
        assert!(many_threads().block_on(async { in_async_task() }));
        assert!(Builder::new_current_thread().build().unwrap().block_on(async { in_async_task() }));
    }

    #[test]
    fn a_thread_for_blocking_calls_is_not_a_task() {
        let runtime = many_threads();
        assert!(!runtime.block_on(async { spawn_blocking(in_async_task).await.unwrap() }));
        assert!(!runtime.block_on(async { spawn(async { block_in_place(in_async_task) }).await.unwrap() }));
    }

    #[test]
    fn a_plain_thread_is_not_a_task_with_or_without_a_runtime_handle() {
        assert!(!in_async_task());
        let runtime = many_threads();
        let _entered = runtime.enter();
        assert!(!in_async_task());
    }
}
