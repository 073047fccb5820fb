//! Writes that are lost between a follower and its leader, while both are healthy.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::LockManager;

use crate::faults::ground::REQUEST_TIMEOUT;
use crate::support::doors::options;
use crate::support::referee::nothing_left;
use crate::support::{Doors, Raw, Referee, Setup, fresh_root, stalls};

const TTL: u64 = 30;
/// Long enough for some writes to be in flight, far too short for an election.
const BREAK: Duration = Duration::from_millis(40);
const BREAKS: u32 = 10;

/// How much longer a lost write may make a call, and a new manager, which makes two of them. etcd itself reports the
/// loss after 7 s, and a request times out after [`REQUEST_TIMEOUT`]. On an idle machine it takes about 0.7 s; the
/// limit allows for a busy one.
const LIMIT: Duration = Duration::from_millis(REQUEST_TIMEOUT.as_millis() as u64 / 2);

/// The slowest call, in microseconds.
#[derive(Default)]
struct Slowest(AtomicU64);

impl Slowest {
    fn time<T>(&self, call: impl FnOnce() -> T) -> T {
        let begun = Instant::now();
        let result = call();
        self.0.fetch_max(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
        result
    }

    fn get(&self) -> Duration {
        Duration::from_micros(self.0.load(Ordering::Relaxed))
    }
}

/// Purpose: the connection between the follower in use and its leader breaks, once a second. Requests that the follower
/// had forwarded are lost, and there may be no later write to reveal it; a caller waits for a moment, not for the
/// request's time limit.
#[test]
fn a_write_that_a_follower_loses_costs_a_moment_and_no_error() {
    const THREADS: usize = 4;
    let cluster = Setup::default().peer_doors().start_cluster(3);
    let doors = Doors::of(&cluster);
    let (root, referee) = (fresh_root("lost-writes"), Referee::new());
    let follower = (cluster.wait_for_leader() + 1) % 3;
    let options = options(TTL).connect_timeout(REQUEST_TIMEOUT).request_timeout(REQUEST_TIMEOUT);
    let manager = doors.manager_at(&cluster, follower, &root, &options);
    let (locks, unlocks, connects) = (Slowest::default(), Slowest::default(), Slowest::default());
    let cycles = AtomicU64::new(0);
    let over = AtomicBool::new(false);
    let begun = Instant::now();
    thread::scope(|scope| {
        for n in 0..THREADS {
            // Two names for two threads each: hand-overs, and free locks.
            let lock = manager.new_lock(&format!("x{}", n % 2)).unwrap();
            let (over, locks, unlocks, cycles, referee) = (&over, &locks, &unlocks, &cycles, &referee);
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    let guard = locks.time(|| lock.lock()).expect("a lost write causes no error");
                    drop(referee.inside(&guard));
                    unlocks.time(|| guard.unlock()).expect("a lost write causes no error");
                    cycles.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            // Only through the follower, so the first contact is there.
            let door = [doors.at(follower).endpoint()];
            while !over.load(Ordering::Relaxed) {
                let connect = || LockManager::connect(&door, &root, options.clone());
                drop(connects.time(connect).expect("a lost write does not prevent connecting"));
            }
        });
        for _ in 0..BREAKS {
            thread::sleep(Duration::from_secs(1));
            cluster.break_peers_of(follower, BREAK);
        }
        over.store(true, Ordering::Relaxed);
    });
    let (locks, unlocks, connects) = (locks.get(), unlocks.get(), connects.get());
    println!(
        "{BREAKS} breaks, {} cycles of {THREADS} threads: slowest lock {locks:?}, unlock {unlocks:?}, connect {connects:?}",
        cycles.load(Ordering::Relaxed)
    );
    assert_eq!(manager.stats().sessions, 1, "the session is kept");
    // Two threads share a name: a lock may wait for another thread's lost acquire and lost release.
    let limit = LIMIT + stalls::since(begun);
    assert!(locks < limit && unlocks < limit && connects < limit, "{locks:?} {unlocks:?} {connects:?}");
    drop(manager);
    nothing_left(&Raw::connect(cluster.access()), &root, Duration::from_secs(TTL));
    referee.judge();
}
