//! Members of a cluster that die, stop, restart, or are cut off from the others.

use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{LockGuard, LockManager, LossReason};

use crate::faults::ground::REQUEST_TIMEOUT;
use crate::support::doors::{options, watchers};
use crate::support::hold_end::HoldEnd;
use crate::support::referee::{millis_between, nothing_left};
use crate::support::witness::Witness;
use crate::support::{Cluster, Doors, Raw, Referee, Setup, fresh_root, stalls, wait, within};

/// The time limit of everything that is known to end.
const LONG: Duration = Duration::from_secs(60);

/// A session must outlive a member's stop of 3 s and the election after it, although its last renewal may be a third of
/// its TTL old. (An election takes one to two seconds.)
const TTL: u64 = 8;

/// A loss that is reported afterwards is reported within this time.
const SOON_AFTER: Duration = Duration::from_millis(300);

fn is_held_for(guard: &LockGuard, time: Duration) -> bool {
    guard.done().recv_timeout(time).is_err_and(|end| end.is_timeout()) && guard.is_held()
}

/// Purpose: the cluster alone handles the leader's death: holders keep their locks, and waiters their order.
#[test]
fn the_leader_s_death_affects_neither_holder_nor_waiters() {
    const WAITERS: usize = 20;
    let cluster = Cluster::start(3);
    let root = fresh_root("leader-killed");
    let referee = Referee::new();
    let leader = cluster.wait_for_leader();
    let connect = || LockManager::connect(cluster.endpoints(), &root, options(TTL)).unwrap();
    let holder = connect();
    let managers: Vec<LockManager> = (0..5).map(|_| connect()).collect();
    let guard = holder.new_lock("x").unwrap().lock().unwrap();
    let inside = referee.inside(&guard);
    referee.write(&guard);
    let waiters: Vec<_> = (0..WAITERS)
        .map(|n| {
            let lock = managers[n % managers.len()].new_lock("x").unwrap();
            thread::spawn(move || lock.lock().map(|guard| referee.use_and_release(guard)))
        })
        .collect();
    let raw = Raw::connect(&cluster.access_without(leader));
    // One contender for each manager.
    wait::eventually(LONG, "all wait", || {
        let waiting: u64 = managers.iter().map(|manager| manager.stats().waiting).sum();
        waiting == WAITERS as u64 && raw.count(&format!("{root}/x/")) == 6
    });

    cluster.member(leader).kill();
    let killed = Instant::now();
    assert!(is_held_for(&guard, Duration::from_secs(TTL + 2)), "lost: {:?}", guard.loss());
    assert!(waiters.iter().all(|waiter| !waiter.is_finished()), "a waiter ended while the lock is held");
    drop(inside);
    referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock()).unwrap();
    let released = Instant::now();
    within(LONG, "every waiter gets the lock", move || {
        for waiter in waiters {
            waiter.join().unwrap().expect("no waiter fails");
        }
    });
    println!(
        "held for {} ms after the leader's death; then {WAITERS} waiters in {} ms",
        millis_between(killed, released),
        millis_between(released, Instant::now())
    );
    assert!(managers.iter().all(|manager| manager.stats().sessions == 1), "a session was lost");
    drop((holder, managers));
    nothing_left(&raw, &root, Duration::from_secs(TTL));
    referee.judge();
}

/// How the follower that carries our streams fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    Killed,
    Stopped,
}

/// Purpose: the follower that carries our streams may die: the manager uses another member at once, and does not retry
/// the dead one.
#[test]
fn the_death_of_the_follower_that_carries_our_streams_costs_one_fail_over() {
    the_follower_that_carries_our_streams_fails(Failure::Killed);
}

/// Purpose: as above, but without a sign that the member is gone: its sockets stay open, and nothing answers.
#[test]
fn a_stop_of_the_follower_that_carries_our_streams_costs_one_fail_over() {
    the_follower_that_carries_our_streams_fails(Failure::Stopped);
}

fn the_follower_that_carries_our_streams_fails(failure: Failure) {
    const TTL: u64 = 5;
    let cluster = Cluster::start(3);
    let doors = Doors::of(&cluster);
    let root = fresh_root("carrier");
    let referee = Referee::new();
    let carrier = (cluster.wait_for_leader() + 1) % 3;
    let manager = doors.manager_at(&cluster, carrier, &root, &options(TTL));
    let guard = manager.new_lock("held").unwrap().lock().unwrap();
    let inside = referee.inside(&guard);
    let lock = manager.new_lock("cycled").unwrap();
    let cycle = || {
        let begun = Instant::now();
        let guard = lock.lock().expect("a fault of one member is no error");
        let (inside, _) = (referee.inside(&guard), referee.write(&guard));
        drop(inside);
        // Until its release is confirmed; a retry beyond that continues by itself.
        let _ = referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock());
        begun.elapsed()
    };
    for _ in 0..20 {
        cycle();
    }
    let elsewhere = || cluster.others(carrier).map(watchers).sum::<u64>();
    let before = elsewhere();

    match failure {
        Failure::Killed => cluster.member(carrier).kill(),
        Failure::Stopped => cluster.member(carrier).stop(),
    }
    let failed = Instant::now();
    let fail_over = cycle();
    let limit = Duration::from_secs(TTL) / 3;
    let stalls = stalls::since(failed);
    wait::eventually(LONG, "the watches are at another member", || elsewhere() > before);
    let watches = failed.elapsed();
    let mut after: Vec<Duration> = (0..30).map(|_| cycle()).collect();
    after.sort_unstable();
    println!(
        "{failure:?}: fail-over of requests {fail_over:?}, of watches {watches:?}; afterwards median {:?}, worst {:?}",
        after[15], after[29]
    );
    assert!(fail_over <= limit + stalls, "{fail_over:?}, with {stalls:?} of stalls");
    // If every third request were slow, there would be ten.
    let slow = after.iter().filter(|&&took| took > Duration::from_millis(500)).count();
    assert!(slow <= 3, "{slow} of 30 requests were slow: {after:?}");
    assert!(is_held_for(&guard, Duration::from_secs(TTL + 1)) && manager.stats().sessions == 1);
    cluster.member(carrier).cont_if_running();
    drop(inside);
    referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock()).unwrap();
    drop((lock, manager));
    nothing_left(&Raw::connect(&cluster.access_without(carrier)), &root, Duration::from_secs(TTL));
    referee.judge();
}

/// Purpose: a leader that stops for less than the TTL costs nothing, not even a session whose streams it carries.
#[test]
fn a_leader_that_stops_for_3_s_costs_nothing() {
    the_leader_stops(Duration::from_secs(3));
}

/// Purpose: a leader that stops for longer than the TTL is replaced, and does no harm when it continues. On a server
/// where it does (etcd #15247, of which no release is entirely free), the loss is reported.
#[test]
fn a_leader_that_stops_for_15_s_costs_nothing_or_the_loss_is_reported() {
    the_leader_stops(Duration::from_secs(15));
}

fn the_leader_stops(time: Duration) {
    let cluster = Cluster::start(3);
    let doors = Doors::of(&cluster);
    let root = fresh_root("leader-stopped");
    let referee = Referee::new();
    let leader = cluster.wait_for_leader();
    let witness = Witness::of(&cluster.access_without(leader), &root);
    let manager = doors.manager_at(&cluster, leader, &root, &options(TTL));
    let guard = manager.new_lock("x").unwrap().lock().unwrap();
    referee.write(&guard);
    let ended = HoldEnd::of_holder(&guard, referee.inside(&guard));

    cluster.member(leader).stop();
    let stopped = Instant::now();
    thread::sleep(time);
    assert!(guard.is_held(), "lost while the leader was stopped: {:?}", guard.loss());
    cluster.member(leader).cont();
    // Time for the old leader to revoke leases on its old term, and for a lost renewal to show.
    let ended = ended.within(Duration::from_secs(TTL + 1));
    match ended {
        None => {
            assert!(guard.is_held() && manager.stats().sessions == 1);
            println!("stopped for {time:?}: the session survived, with {:?} left", guard.remaining());
            referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock()).unwrap();
        }
        Some(at) => {
            let version = cluster.member((leader + 1) % 3).version();
            let deleted = witness.wait_for_delete(LONG, guard.etcd_key());
            println!(
                "stopped for {time:?}: etcd {version} ({} of its bug #15247) took the lease {} ms after the stop ({:?}), \
                 reported {} ms later",
                if version.knows_of_15247() { "with the fix" } else { "without the fix" },
                millis_between(stopped, deleted.at),
                guard.loss(),
                millis_between(deleted.at, at)
            );
            assert_eq!(guard.loss(), Some(LossReason::SessionRevoked), "the server's doing, not ours");
            assert!(time > Duration::from_secs(TTL), "a stop of {time:?} expires nothing");
            assert!(at <= deleted.at + SOON_AFTER + stalls::since(stopped), "reported too late");
            assert!(!guard.is_held());
            // A manager with a lost guard is granted the lock under a new session only.
            drop(guard);
        }
    }
    let again = manager.new_lock("x").unwrap().lock_timeout(LONG).expect("the lock can be had again");
    referee.use_and_release(again);
    drop(manager);
    nothing_left(&Raw::connect(&cluster.access_without(leader)), &root, Duration::from_secs(TTL));
    referee.judge();
}

/// Purpose: a follower that is cut off from its peers still answers from its old state: no lock is granted from it, and
/// the manager moves to another member.
#[test]
fn a_follower_without_its_peers_grants_nothing_and_is_abandoned() {
    let cluster = Setup::default().peer_doors().start_cluster(3);
    let doors = Doors::of(&cluster);
    let root = fresh_root("lonely");
    let referee = Referee::new();
    let lonely = (cluster.wait_for_leader() + 1) % 3;
    let others: Vec<String> = cluster.others(lonely).map(|member| member.endpoint()).collect();
    let holder = LockManager::connect(&others, &root, options(TTL)).unwrap();
    let second = LockManager::connect(&others, &root, options(TTL)).unwrap();
    let before = watchers(cluster.member(lonely));
    let waiter = doors.manager_at(&cluster, lonely, &root, &options(TTL));
    let guard = holder.new_lock("x").unwrap().lock().unwrap();
    let inside = referee.inside(&guard);
    let raw = Raw::connect(&cluster.access_without(lonely));
    let in_queue = |count| wait::eventually(LONG, "it queues", || raw.count(&format!("{root}/x/")) == count);
    let wait = |manager: &LockManager| {
        let lock = manager.new_lock("x").unwrap();
        thread::spawn(move || {
            let guard = lock.lock().expect("a follower without peers causes no error");
            let got = Instant::now();
            let inside = referee.inside(&guard);
            referee.write(&guard);
            thread::sleep(Duration::from_millis(500));
            assert!(guard.is_held());
            drop(inside);
            got
        })
    };
    let between = wait(&second);
    in_queue(2);
    let last = wait(&waiter);
    in_queue(3);
    wait::eventually(LONG, "its watches are there", || watchers(cluster.member(lonely)) >= before + 2);

    cluster.isolate(lonely);
    let cut = Instant::now();
    // From here on, that follower's state is stale: `second` gets the lock, and then the waiter.
    referee.write(&guard);
    drop(inside);
    referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock()).unwrap();
    wait::eventually(LONG, "no watch is left there", || watchers(cluster.member(lonely)) <= before);
    let left = cut.elapsed();
    let tried = referee.timed("try_lock", REQUEST_TIMEOUT, || waiter.new_lock("x").unwrap().try_lock());
    assert!(!matches!(tried, Ok(Some(_))) || last.is_finished(), "granted while another holds");
    drop(tried);
    let (between, got) =
        within(LONG, "both hold it in turn", move || (between.join().unwrap(), last.join().unwrap()));
    println!(
        "watches left after {left:?}; the one in between got it {} ms after the cut, the waiter {} ms after that",
        millis_between(cut, between),
        millis_between(between, got)
    );
    assert!(left < Duration::from_secs(4) + stalls::since(cut), "{left:?}");
    assert!(got > between);
    assert!(waiter.stats().sessions == 1, "the session was lost");
    drop((holder, second, waiter));
    nothing_left(&raw, &root, Duration::from_secs(TTL));
    referee.judge();
}
