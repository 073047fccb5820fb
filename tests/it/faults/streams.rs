//! Watches whose history is compacted, and a silent watch stream.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::faults::ground::{REQUEST_TIMEOUT, assert_nothing_left, connect};
use crate::support::stalls;
use crate::support::{Etcd, Proxy, Raw, Referee, eventually, fresh_root, shared};

const TTL: Duration = Duration::from_secs(5);
const SOON: Duration = Duration::from_secs(20);

/// Compacts up to the present revision every 50 ms until `stop` is set; returns how often there was something to
/// compact.
fn compact_all_the_time(raw: &Raw, stop: &AtomicBool, compactions: &AtomicU64) {
    while !stop.load(Ordering::Relaxed) {
        let revision = raw.revision();
        // Refused if there is no new revision.
        if raw.call(move |mut client| async move { client.compact(revision, None).await }).is_ok() {
            compactions.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Fifty waiters, a history that is compacted every 50 ms, and connections reset every second, so that watches restart
/// at compacted revisions: every waiter gets the lock, and no call fails.
#[test]
fn compaction_strands_no_waiter() {
    const WAITERS: usize = 50;
    let etcd = Etcd::start();
    let door = Proxy::of(&etcd);
    let access = etcd.access().at([door.endpoint()]);
    let root = fresh_root("compaction");
    let managers: Vec<_> = (0..WAITERS).map(|_| connect(&access, &root, TTL)).collect();
    let (raw, referee) = (Raw::connect(etcd.access()), Referee::new());
    let (stop, compactions, resets) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| compact_all_the_time(&raw, &stop, &compactions));
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_secs(1));
                door.reset_all();
                resets.fetch_add(1, Ordering::Relaxed);
            }
        });
        let waiters: Vec<_> = managers
            .iter()
            .map(|manager| {
                let lock = manager.new_lock("x").unwrap();
                scope.spawn(move || {
                    let limit = Duration::from_secs(60);
                    let guard = referee.timed("lock_timeout", limit, || lock.lock_timeout(limit))?;
                    let inside = referee.inside(&guard);
                    std::thread::sleep(Duration::from_millis(40));
                    assert!(guard.is_held() && referee.write(&guard));
                    drop(inside);
                    // A reset may have broken the connection; the release is still confirmed.
                    referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock())
                })
            })
            .collect();
        let outcomes: Vec<_> = waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect();
        stop.store(true, Ordering::Relaxed);
        for outcome in outcomes {
            outcome.expect("no call fails");
        }
    });
    referee.judge();
    let (compactions, resets) = (compactions.into_inner(), resets.into_inner());
    println!(
        "row 15: {WAITERS} waiters served in {:?}, {compactions} compactions, {resets} resets",
        start.elapsed()
    );
    assert!(compactions >= 10 && resets >= 3, "the faults did not happen: {compactions}, {resets}");
    assert_eq!(referee.holds(), WAITERS);
    for manager in &managers {
        assert_eq!(manager.stats().lost.total(), 0);
    }
    drop(managers);
    assert_nothing_left(etcd.access(), &root, TTL);
}

/// Only the watch stream falls silent, and the rest of the connection works: a waiter gets the lock by its fallback in
/// time, and held locks stay held.
#[test]
fn a_silent_watch_stream_delays_a_hand_over_by_no_more_than_the_fallback() {
    const FALLBACK: Duration = Duration::from_secs(2);
    let door = Proxy::of(shared());
    let root = fresh_root("silent");
    let holder = connect(shared().access(), &root, TTL);
    let waiter = connect(&shared().access().at([door.endpoint()]), &root, TTL);
    let raw = Raw::connect(shared().access());
    let kept = waiter.new_lock("kept").unwrap().lock().unwrap();
    eventually(SOON, "the session and the hold are watched", || waiter.stats().rpcs.watch >= 2);
    let referee = Referee::new();
    let mut longest = Duration::ZERO;
    for round in 0..4 {
        let guard = holder.new_lock("x").unwrap().lock().unwrap();
        let inside = referee.inside(&guard);
        let watches = waiter.stats().rpcs.watch;
        let pending = waiter.new_lock("x").unwrap().enqueue().unwrap();
        eventually(SOON, "the waiter is queued", || raw.count(&format!("{root}/x/")) == 2);
        // In the first round the watch works until now; in later ones the stream is silent from the start.
        eventually(SOON, "the waiter watches its predecessor", || waiter.stats().rpcs.watch > watches);
        door.mute_watches();
        let start = Instant::now();
        drop(inside);
        guard.unlock().unwrap();
        let next = pending.wait().unwrap();
        let took = start.elapsed();
        longest = longest.max(took);
        let limit = FALLBACK + Duration::from_millis(250) + stalls::since(start);
        assert!(took <= limit, "round {round}: {took:?} after the release");
        referee.use_and_unlock(next, REQUEST_TIMEOUT).unwrap();
    }
    // Long enough for the stream to be abandoned, and for its successor to be silent as well.
    std::thread::sleep(TTL + Duration::from_secs(2));
    assert!(kept.is_held());
    println!("row 15: watch stream mute: hand-over after at most {longest:?}");
    door.pass();
    kept.unlock().unwrap();
    assert_eq!(waiter.stats().lost.total(), 0);
    referee.judge();
    drop((holder, waiter));
    assert_nothing_left(shared().access(), &root, TTL);
}
