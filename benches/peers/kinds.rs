//! Read-write locks and semaphores beside the mutex: readers of one name beside a name each, and a semaphore of eight
//! beside a mutex, with and without work under the lock. Contestants take turns on one etcd.
//!
//! `cargo bench -p peers --bench kinds -- [rounds] [seconds]`
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etcd_fixture::Etcd;
use etcd_lock::{DistributedLock, LockManager, LockManagerOptions, LockOptions, Mode};

const WORKERS: usize = 64;
const WARM_UP: Duration = Duration::from_millis(500);
const SEMAPHORE: Mode = Mode::Permits { take: 1, limit: 8 };
/// What a semaphore is for: work that takes longer than a commit.
const WORK: Duration = Duration::from_millis(5);

/// What all workers do.
#[derive(Clone, Copy)]
struct Load {
    title: &'static str,
    mode: Mode,
    /// All take one name, or each its own.
    one_name: bool,
    /// Time under the lock.
    work: Duration,
    /// How many managers the workers share, as many programs would.
    managers: usize,
}

/// A load, the one it is compared with, and the least share of the other's rate.
struct Row {
    load: Load,
    beside: Load,
    target: f64,
}

const fn load(title: &'static str, mode: Mode, work: Duration, managers: usize) -> Load {
    Load { title, mode, one_name: true, work, managers }
}

fn rows() -> Vec<Row> {
    let readers = load("64 readers of one name", Mode::Shared, Duration::ZERO, 1);
    let own = load("64 names, a writer each", Mode::Exclusive, Duration::ZERO, 1);
    let mut rows = vec![Row { load: readers, beside: Load { one_name: false, ..own }, target: 0.5 }];
    for managers in [1, 8, WORKERS] {
        for (work, target) in [(WORK, 6.0), (Duration::ZERO, 0.7)] {
            rows.push(Row {
                load: load("semaphore of 8", SEMAPHORE, work, managers),
                beside: load("mutex", Mode::Exclusive, work, managers),
                target,
            });
        }
    }
    rows
}

fn main() {
    // cargo passes `--bench` first.
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let (rounds, seconds) = (numbers.next().unwrap_or(3), numbers.next().unwrap_or(3));
    let etcd = Etcd::named_or_private(&std::env::temp_dir()).unwrap();
    println!("{WORKERS} threads, lock and drop, medians of {rounds} rounds of {seconds} s");
    println!(
        "{:<24} {:>8} {:>6} {:>9}   {:<24} {:>9} {:>7} {:>7}",
        "", "managers", "work", "cycles/s", "beside", "cycles/s", "times", "target"
    );
    for Row { load, beside, target } in rows() {
        let mut rates = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            for (rates, load) in rates.iter_mut().zip([load, beside]) {
                rates.push(rate(etcd.endpoints(), load, Duration::from_secs(seconds)));
            }
        }
        let [ours, other] = rates.map(median);
        let (times, reached) = (ours / other, if ours / other < target { "  missed" } else { "" });
        println!(
            "{:<24} {:>8} {:>6} {ours:>9.0}   {:<24} {other:>9.0} {times:>7.2} {target:>7.1}{reached}",
            load.title,
            load.managers,
            format!("{:?}", load.work),
            beside.title
        );
    }
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Cycles per second.
fn rate(endpoints: &[String], load: Load, time: Duration) -> f64 {
    let managers: Vec<LockManager> = (0..load.managers)
        .map(|_| LockManager::connect(endpoints, "/kinds", LockManagerOptions::default()).unwrap())
        .collect();
    let (stop, counting, cycles) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    let rate = thread::scope(|scope| {
        for worker in 0..WORKERS {
            let lock = lock_of(&managers[worker % load.managers], load, worker);
            let (stop, counting, cycles) = (&stop, &counting, &cycles);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let guard = lock.lock().unwrap();
                    if !load.work.is_zero() {
                        thread::sleep(load.work);
                    }
                    drop(guard);
                    cycles.fetch_add(u64::from(counting.load(Ordering::Relaxed)), Ordering::Relaxed);
                }
            });
        }
        thread::sleep(WARM_UP);
        counting.store(true, Ordering::Relaxed);
        let begun = Instant::now();
        thread::sleep(time);
        let rate = cycles.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        rate
    });
    managers.iter().for_each(|manager| manager.close().unwrap());
    rate
}

fn lock_of(manager: &LockManager, load: Load, worker: usize) -> DistributedLock {
    let name = if load.one_name { "one".into() } else { format!("own-{worker}") };
    manager.new_lock_with(&name, LockOptions::default().mode(load.mode)).unwrap()
}
