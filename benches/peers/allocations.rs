//! The library's allocations: for each cycle of lock and release, and for each held name. On the in-memory store, whose
//! own allocations are included. They are the same in every run, so a change of the numbers is a change of the code.
//!
//! `cargo bench -p peers --bench allocations`
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use etcd_lock::memory::MemoryStore;
use etcd_lock::{DistributedLock, LockGuard, LockManager};

#[global_allocator]
static COUNTED: dhat::Alloc = dhat::Alloc;

const CYCLES: u32 = 2_000;
const NAMES: u32 = 10_000;

fn main() {
    let profiler = dhat::Profiler::builder().testing().build();
    let manager = LockManager::in_memory(&MemoryStore::new(), "/bench", Default::default()).unwrap();

    println!("{:<34} {:>12} {:>12}", "each", "allocations", "bytes");
    let lock = manager.new_lock("one").unwrap();
    cycles("lock and unlock", || lock.lock().unwrap().unlock().unwrap());
    cycles("lock and drop", || drop(lock.lock().unwrap()));
    let reentrant = manager.new_reentrant_lock("reentrant").unwrap();
    let outer = reentrant.lock().unwrap();
    cycles("re-entry and drop", || drop(reentrant.lock().unwrap()));
    drop(outer);
    let held = lock.lock().unwrap();
    cycles("clone and drop", || drop(held.clone()));
    cycles("is_held", || assert!(held.is_held()));
    drop(held);
    cycles("new_lock, lock and drop", || drop(manager.new_lock("new").unwrap().lock().unwrap()));

    held_names(&manager);
    drop(manager);
    drop(profiler);
}

/// The allocations of each run of `cycle`, after a few that fill caches and buffers.
fn cycles(what: &str, mut cycle: impl FnMut()) {
    (0..CYCLES / 10).for_each(|_| cycle());
    let before = dhat::HeapStats::get();
    (0..CYCLES).for_each(|_| cycle());
    let after = dhat::HeapStats::get();
    let each = |from: u64, to: u64| (to - from) as f64 / f64::from(CYCLES);
    let blocks = each(before.total_blocks, after.total_blocks);
    let bytes = each(before.total_bytes, after.total_bytes);
    println!("{what:<34} {blocks:>12.1} {bytes:>12.0}");
}

/// The memory of a held name: the caller's part, the I/O thread's, and the store's keys and watches.
fn held_names(manager: &LockManager) {
    let before = dhat::HeapStats::get();
    let take = |n| -> (DistributedLock, LockGuard) {
        let lock = manager.new_lock(&format!("name-{n:05}")).unwrap();
        let guard = lock.lock().unwrap();
        (lock, guard)
    };
    let held: Vec<_> = (0..NAMES).map(take).collect();
    // A hold is watched from 100 ms after its grant.
    std::thread::sleep(std::time::Duration::from_millis(500));
    let after = dhat::HeapStats::get();
    let each = |from: usize, to: usize| (to as f64 - from as f64) / f64::from(NAMES);
    let blocks = each(before.curr_blocks, after.curr_blocks);
    let bytes = each(before.curr_bytes, after.curr_bytes);
    println!("{:<34} {blocks:>12.1} {bytes:>12.0}", "name held, with the store's part");
    drop(held);
}
