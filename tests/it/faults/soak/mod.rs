//! Random faults by seed, with every oracle at the end.
//!
//! `ETCD_LOCK_SOAK_SECONDS` sets the length, and `ETCD_LOCK_SOAK_SEED` repeats the faults of a failed run.

mod chaos;
mod fenced_set;
mod workers;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_lock::LockManager;

use chaos::{Chaos, Stage};
use workers::Record;

use crate::faults::ground::{assert_nothing_left, connect_with, options};
use crate::support::{Cluster, Proxy, fresh_root};

/// etcd's minimum.
const TTL: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(1);
const MANAGERS: usize = 3;
const THREADS: usize = 5;
const MEMBERS: usize = 3;
const NAMES: usize = 4;
const DEFAULT_SECONDS: u64 = 60;

/// Prints how to repeat a failed run.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "--- to repeat these faults: ETCD_LOCK_SOAK_SEED={} cargo test --test faults soak",
                self.0
            );
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text:?} is not a number")))
}

/// Managers that each have a way of their own to each member, which can be broken.
fn managers_with_doors(cluster: &Cluster, root: &str) -> (Vec<Vec<Proxy>>, Vec<LockManager>) {
    let doors = |_| -> Vec<Proxy> { cluster.members().iter().map(Proxy::of).collect() };
    let doors: Vec<Vec<Proxy>> = (0..MANAGERS).map(doors).collect();
    let manager = |doors: &Vec<Proxy>| {
        let access = cluster.access().at(doors.iter().map(Proxy::endpoint));
        let options = options(&access, TTL).request_timeout(REQUEST_TIMEOUT);
        connect_with(&access, root, options)
    };
    let managers = doors.iter().map(manager).collect();
    (doors, managers)
}

/// Three managers with five threads each run through random faults: exclusion, the order of tokens, no lost write, no
/// call beyond its limit, nothing left behind. After the faults, every manager gets every lock.
#[test]
fn random_faults_break_no_promise() {
    let seed = Seed(number("ETCD_LOCK_SOAK_SEED").unwrap_or_else(|| fastrand::u64(..)));
    let length = Duration::from_secs(number("ETCD_LOCK_SOAK_SECONDS").unwrap_or(DEFAULT_SECONDS));
    println!("row 21: seed {}, {length:?}", seed.0);
    let cluster = Cluster::start(MEMBERS);
    let root = fresh_root("soak");
    let (doors, managers) = managers_with_doors(&cluster, &root);
    let stage = Stage { cluster: &cluster, doors: &doors, managers: &managers, root: &root };
    let (record, stop) = (Record::new(NAMES), AtomicBool::new(false));
    let evictions = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..MANAGERS * THREADS)
            .map(|n| {
                let (manager, record, stop) = (&managers[n % MANAGERS], &record, &stop);
                let seed = seed.0.wrapping_add(n as u64);
                scope.spawn(move || workers::work(manager, record, stop, seed))
            })
            .collect();
        let mut chaos = Chaos::new(seed.0);
        let end = Instant::now() + length;
        // A worker that panicked has found a violation, so stop.
        while Instant::now() < end && !threads.iter().any(|thread| thread.is_finished()) {
            chaos.step(&stage);
        }
        stage.heal();
        stop.store(true, Ordering::Relaxed);
        for thread in threads {
            if let Err(panic) = thread.join() {
                eprintln!("{}", chaos.history());
                std::panic::resume_unwind(panic);
            }
        }
        println!("row 21: {}", chaos.summary());
        chaos.into_evictions()
    });
    println!("row 21: {record}");
    record.judge(&evictions);
    // The faults are over: every manager gets every lock soon.
    for manager in &managers {
        for name in 0..NAMES {
            let lock = manager.new_lock(&workers::name(name)).unwrap();
            lock.lock_timeout(TTL + Duration::from_secs(8)).expect("free again").unlock().expect("held");
        }
    }
    drop(managers);
    assert_nothing_left(cluster.access(), &root, TTL);
}
