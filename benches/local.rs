//! Costs within the process: querying a guard, sharing it, re-entering a lock and, for comparison with a message to the
//! I/O thread and back, a whole cycle on the in-memory store.
//!
//! `cargo bench --bench local`
#![allow(missing_docs, reason = "criterion's macros define a public function")]
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use criterion::{Criterion, criterion_group, criterion_main};
use etcd_lock::crossbeam_channel::TryRecvError;
use etcd_lock::memory::MemoryStore;
use etcd_lock::{LockGuard, LockManager};

fn manager() -> LockManager {
    LockManager::in_memory(&MemoryStore::new(), "/bench", Default::default()).unwrap()
}

/// Targets: `is_held` < 100 ns, `done` < 20 ns, re-entry < 200 ns.
fn guard(c: &mut Criterion) {
    let manager = manager();
    let lock = manager.new_lock("held").unwrap();
    let guard = lock.lock().unwrap();

    let mut group = c.benchmark_group("guard");
    group.bench_function("is_held", |b| b.iter(|| black_box(&guard).is_held()));
    group.bench_function("remaining", |b| b.iter(|| black_box(&guard).remaining()));
    group.bench_function("done", |b| b.iter(|| black_box(black_box(&guard).done())));
    group.bench_function("done, looked at", |b| {
        b.iter(|| assert_eq!(black_box(&guard).done().try_recv(), Err(TryRecvError::Empty)));
    });
    group.bench_function("clone and drop", |b| b.iter(|| drop(black_box(black_box(&guard).clone()))));
    group.finish();

    let lock = manager.new_reentrant_lock("reentrant").unwrap();
    let outer = lock.lock().unwrap();
    let mut group = c.benchmark_group("re-entry");
    group.bench_function("lock and drop", |b| b.iter(|| drop(black_box(lock.lock().unwrap()))));
    group.bench_function("lock and drop, other names busy", |b| {
        let others = Busy::start(&manager);
        b.iter(|| drop(black_box(lock.lock().unwrap())));
        drop(others);
    });
    group.finish();
    drop(outer);
}

/// A command to the I/O thread and its answer. The in-memory store answers at once, so this is the cost of a lock
/// without etcd and the network.
fn round_trip(c: &mut Criterion) {
    let manager = manager();
    let lock = manager.new_lock("free").unwrap();
    let mut group = c.benchmark_group("in-process store");
    group.bench_function("lock and unlock", |b| b.iter(|| lock.lock().unwrap().unlock().unwrap()));
    group.bench_function("lock and drop", |b| b.iter(|| drop(lock.lock().unwrap())));
    let names: Vec<_> = (0..64).map(|n| manager.new_lock(&format!("burst-{n}")).unwrap()).collect();
    group.bench_function("64 places taken in a burst", |b| {
        b.iter(|| {
            let burst: Vec<_> = names.iter().map(|lock| lock.enqueue().unwrap()).collect();
            let guards: Vec<LockGuard> = burst.into_iter().map(|place| place.wait().unwrap()).collect();
            drop(guards);
        });
    });
    group.finish();
}

/// A thread that takes and releases a lock of another name until it is dropped.
struct Busy {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Busy {
    fn start(manager: &LockManager) -> Self {
        let lock = manager.new_lock("other").unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                drop(lock.lock().unwrap());
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap();
    }
}

criterion_group!(local, guard, round_trip);
criterion_main!(local);
