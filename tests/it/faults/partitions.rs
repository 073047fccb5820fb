//! Networks that fail between a holder and etcd, and whole etcds that fail.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{ErrorCode, LockManager, LossReason};

use crate::support::doors::options;
use crate::support::hold_end::HoldEnd;
use crate::support::proxy::Way;
use crate::support::referee::{millis_between, nothing_left};
use crate::support::stalls;
use crate::support::witness::{Seen, What, Witness};
use crate::support::{Cluster, Etcd, Proxy, Raw, Referee, eventually, fresh_root, within};

/// The number of partitions for each TTL, which run at the same time.
const PARTITIONS: usize = 20;

/// The minimum time by which a holder must learn of the loss before etcd may grant its lock to another, at these TTLs.
const MARGIN: Duration = Duration::from_millis(300);

/// How much longer than the TTL the next holder may wait: etcd checks for expired leases every half second, and deletes
/// their keys with a commit.
const EXPIRY: Duration = Duration::from_millis(1500);

/// The time limit of everything that is known to end.
const LONG: Duration = Duration::from_secs(60);

/// Purpose: a holder that is cut off from etcd must learn that its lock is lost before the next holder gets it,
/// wherever between two renewals the cut happens.
#[test]
fn a_partitioned_holder_learns_of_the_loss_before_the_next_grant_at_a_ttl_of_3_s() {
    partitions(3);
}

/// Purpose: as above, with another relation of TTL, margin and renewals.
#[test]
fn a_partitioned_holder_learns_of_the_loss_before_the_next_grant_at_a_ttl_of_5_s() {
    partitions(5);
}

/// The times of one partition, in ms.
#[derive(Debug)]
struct Outcome {
    /// From the next holder's grant to the old one's notice; positive if the notice was late.
    notice_after_grant: i64,
    /// From etcd's deletion, as a watch reported it, to the old holder's notice (O5).
    notice_after_delete: i64,
    /// From the cut to the next holder's grant.
    got_after: Duration,
    /// How long the machine stalled meanwhile.
    stalls: Duration,
}

impl Outcome {
    /// Late, and not because of a stall as long as the safety margin, during which a holder could not even record the
    /// time.
    fn is_late(&self) -> bool {
        let excused = if self.stalls < MARGIN { 0 } else { self.stalls.as_millis() };
        i128::from(self.notice_after_grant.max(self.notice_after_delete)) > excused.cast_signed()
    }
}

fn partitions(ttl: u64) {
    let etcd = Etcd::start();
    let root = fresh_root(&format!("partition-{ttl}"));
    let witness = Witness::of(etcd.access(), &root);
    let referee = Referee::new();
    let ready = Barrier::new(PARTITIONS);
    let outcomes: Vec<Outcome> = thread::scope(|scope| {
        let runs: Vec<_> = (0..PARTITIONS)
            .map(|n| {
                let (etcd, witness, ready) = (&etcd, &witness, &ready);
                let root = &root;
                scope.spawn(move || partition(etcd, witness, referee, ready, (root, &format!("p{n}")), ttl))
            })
            .collect();
        runs.into_iter().map(|run| run.join().expect("a partition")).collect()
    });
    let sorted = |of: fn(&Outcome) -> i64| {
        let mut sorted: Vec<i64> = outcomes.iter().map(of).collect();
        sorted.sort_unstable();
        sorted
    };
    println!("TTL {ttl} s, notice - grant in ms: {:?}", sorted(|outcome| outcome.notice_after_grant));
    println!("TTL {ttl} s, notice - deletion in ms: {:?}", sorted(|outcome| outcome.notice_after_delete));
    println!(
        "TTL {ttl} s, cut to got in ms: {:?}",
        sorted(|outcome| i64::try_from(outcome.got_after.as_millis()).unwrap())
    );
    let limit = Duration::from_secs(ttl) + EXPIRY;
    for outcome in &outcomes {
        assert!(!outcome.is_late(), "reported late: {outcome:?}");
        assert!(outcome.got_after <= limit + outcome.stalls, "the lock was blocked: {outcome:?}");
    }
    referee.judge();
    nothing_left(&Raw::connect(etcd.access()), &root, Duration::from_secs(ttl));
}

fn partition(
    etcd: &Etcd,
    witness: &Witness,
    referee: &'static Referee,
    ready: &Barrier,
    (root, name): (&str, &str),
    ttl: u64,
) -> Outcome {
    let proxy = Proxy::of(etcd);
    let holder = LockManager::connect(&[proxy.endpoint()], root, options(ttl)).unwrap();
    let next = LockManager::connect(etcd.endpoints(), root, options(ttl)).unwrap();
    // Connect first, while no other partition loads the machine.
    ready.wait();
    let guard = holder.new_lock(name).unwrap().lock().unwrap();
    let key = guard.etcd_key().to_owned();
    let ended = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let waiter = {
        let lock = next.new_lock(name).unwrap();
        thread::spawn(move || {
            let guard = lock.lock().expect("the next holder is granted");
            let got = Instant::now();
            referee.use_and_release(guard);
            got
        })
    };
    let queue = format!("{root}/{name}/");
    let queued = |seen: &Seen| seen.key.starts_with(&queue) && seen.key != key;
    witness.wait_for(LONG, "the next holder is queued", queued);
    referee.write(&guard);
    // At a random point between two renewals.
    thread::sleep(Duration::from_secs(ttl).mul_f64(fastrand::f64() / 3.0));
    let cut = Instant::now();
    proxy.blackhole();
    let ended = ended.within(LONG).expect("the holder learns of the loss");
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    let got = waiter.join().expect("the next holder's thread");
    let deleted = witness.wait_for_delete(LONG, &key).at;
    proxy.pass();
    // Late by less than a millisecond is late.
    let late = |earlier: Instant, later: Instant| match millis_between(earlier, later) {
        0 if later > earlier => 1,
        millis => millis,
    };
    let (notice_after_grant, notice_after_delete) = (late(got, ended), late(deleted, ended));
    Outcome { notice_after_grant, notice_after_delete, got_after: got - cut, stalls: stalls::since(cut) }
}

/// Purpose: a whole cluster that stops for longer than the TTL can report nothing; the holder must know by its own
/// clock, and everything must work again once the cluster continues.
#[test]
fn a_cluster_that_stops_for_longer_than_the_ttl_costs_the_hold_in_time_and_nothing_else() {
    const TTL: u64 = 3;
    let cluster = Cluster::start(3);
    let root = fresh_root("all-stopped");
    let referee = Referee::new();
    let manager = LockManager::connect(cluster.endpoints(), &root, options(TTL)).unwrap();
    let lock = manager.new_lock("x").unwrap();
    let guard = lock.lock().unwrap();
    referee.write(&guard);
    let ended = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let (key, token) = (guard.etcd_key().to_owned(), guard.token());

    cluster.members().iter().for_each(|member| member.stop());
    let stopped = Instant::now();
    let at = ended.within(LONG).expect("the holder learns of the loss while the cluster is stopped");
    assert!(at <= stopped + Duration::from_secs(TTL) + stalls::since(stopped), "reported late");
    assert!(!guard.is_held() && guard.loss() == Some(LossReason::SessionExpired));
    println!("reported {} ms after the stop", millis_between(stopped, at));
    let waiter = thread::spawn(move || lock.lock());
    thread::sleep((stopped + Duration::from_secs(TTL + 2)).saturating_duration_since(Instant::now()));

    cluster.members().iter().for_each(|member| member.cont());
    let continued = Instant::now();
    let next = within(LONG, "a new session is created by itself", || waiter.join().unwrap().unwrap());
    println!("locked again {} ms after the members continued", millis_between(continued, Instant::now()));
    assert!(next.token() > token);
    referee.use_and_release(next);
    let raw = Raw::connect(cluster.access());
    eventually(Duration::from_secs(TTL + 3), "the old key is deleted", || raw.get(&key).is_none());
    drop((guard, manager));
    nothing_left(&raw, &root, Duration::from_secs(TTL));
    referee.judge();
}

/// Purpose: losing the quorum for less than the remaining time must cost no lock.
#[test]
fn a_quorum_that_is_lost_for_3_s_costs_nothing() {
    // The last renewal may be a third of the TTL old, and an election follows the 3 s; time must be left after both.
    const TTL: u64 = 10;
    let cluster = Cluster::start(3);
    let root = fresh_root("quorum-3");
    let referee = Referee::new();
    let manager = LockManager::connect(cluster.endpoints(), &root, options(TTL)).unwrap();
    let guard = manager.new_lock("x").unwrap().lock().unwrap();
    let inside = referee.inside(&guard);
    let leader = cluster.wait_for_leader();
    let gone = [leader, (leader + 1) % 3];
    gone.iter().for_each(|&member| cluster.member(member).stop());
    thread::sleep(Duration::from_secs(3));
    gone.iter().for_each(|&member| cluster.member(member).cont());
    assert!(guard.done().recv_timeout(Duration::from_secs(TTL + 2)).is_err_and(|end| end.is_timeout()));
    assert!(guard.is_held() && manager.stats().sessions == 1);
    referee.write(&guard);
    drop(inside);
    guard.unlock().unwrap();
    drop(manager);
    nothing_left(&Raw::connect(cluster.access()), &root, Duration::from_secs(TTL));
    referee.judge();
}

/// Purpose: without a quorum for long, holders must learn of the loss in time and calls must keep their limits; with a
/// quorum again, everything must recover without help.
#[test]
fn a_quorum_lost_for_20_s_is_reported_in_time_calls_end_and_it_recovers_alone() {
    const TTL: u64 = 3;
    let request = Duration::from_secs(2);
    let cluster = Cluster::start(3);
    let root = fresh_root("quorum-20");
    let referee = Referee::new();
    let manager =
        LockManager::connect(cluster.endpoints(), &root, options(TTL).request_timeout(request)).unwrap();
    let lock = manager.new_lock("x").unwrap();
    let guard = lock.lock().unwrap();
    referee.write(&guard);
    let ended = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let token = guard.token();
    let leader = cluster.wait_for_leader();
    let gone = [leader, (leader + 1) % 3];
    gone.iter().for_each(|&member| cluster.member(member).kill());
    let lost = Instant::now();

    let at = ended.within(LONG).expect("the holder learns of the loss");
    assert!(at <= lost + Duration::from_secs(TTL) + stalls::since(lost), "reported late");
    println!("reported {} ms after the quorum was lost", millis_between(lost, at));
    let waiter = thread::spawn(move || lock.lock());
    let other = manager.new_lock("other").unwrap();
    while lost.elapsed() < Duration::from_secs(20) {
        let limit = Duration::from_millis(fastrand::u64(1..1500));
        let refused = referee.timed("lock_timeout", limit, || other.lock_timeout(limit));
        assert_eq!(refused.unwrap_err().code(), ErrorCode::Unavailable, "an outage is not contention");
        let refused = referee.timed("try_lock", request, || other.try_lock());
        assert_eq!(refused.unwrap_err().code(), ErrorCode::Unavailable);
        let refused = referee.timed("lock_info", request, || manager.lock_info("x"));
        assert_eq!(refused.unwrap_err().code(), ErrorCode::Unavailable);
    }

    gone.iter().for_each(|&member| cluster.member(member).restart_without_waiting());
    let back = Instant::now();
    let next = within(LONG, "the waiter gets the lock", || waiter.join().unwrap().unwrap());
    println!("locked again {} ms after two members were started", millis_between(back, Instant::now()));
    assert!(next.token() > token);
    referee.use_and_release(next);
    drop((guard, other, manager));
    let raw = Raw::connect(&cluster.access_without(leader));
    nothing_left(&raw, &root, Duration::from_secs(TTL));
    referee.judge();
}

/// The effect of a network on one direction.
#[derive(Clone, Copy, Debug)]
enum OneWay {
    RequestsLost,
    AnswersLost,
    AnswersLate(Duration),
}

/// Purpose: a network that works in one direction only delivers renewals or answers, but never both: a holder must not
/// rely on a renewal whose answer has not arrived in time.
#[test]
fn a_network_that_works_one_way_only_never_makes_two_holders() {
    const TTL: u64 = 3;
    let etcd = Etcd::start();
    let late = OneWay::AnswersLate(Duration::from_secs(TTL - 1));
    thread::scope(|scope| {
        for way in [OneWay::RequestsLost, OneWay::AnswersLost, late] {
            let etcd = &etcd;
            scope.spawn(move || one_way(etcd, way, TTL));
        }
    });
}

fn one_way(etcd: &Etcd, way: OneWay, ttl: u64) {
    let root = fresh_root("one-way");
    let witness = Witness::of(etcd.access(), &root);
    let referee = Referee::new();
    let proxy = Proxy::of(etcd);
    let holder = LockManager::connect(&[proxy.endpoint()], &root, options(ttl)).unwrap();
    let next = LockManager::connect(etcd.endpoints(), &root, options(ttl)).unwrap();
    let guard = holder.new_lock("x").unwrap().lock().unwrap();
    let key = guard.etcd_key().to_owned();
    let ended = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let waiter = {
        let lock = next.new_lock("x").unwrap();
        thread::spawn(move || {
            let guard = lock.lock().expect("the next holder is granted");
            let got = Instant::now();
            referee.use_and_release(guard);
            got
        })
    };
    match way {
        OneWay::RequestsLost => proxy.hold(Way::ToServer),
        OneWay::AnswersLost => proxy.hold(Way::ToClient),
        OneWay::AnswersLate(delay) => proxy.delay_way(Way::ToClient, delay),
    }
    let broken = Instant::now();
    let is_delete = |seen: &Seen| seen.key == key && seen.what == What::Deleted;
    let outcome = ended.within(Duration::from_secs(3 * ttl));
    let held = guard.is_held();
    // A guard keeps its manager open, and with it a session.
    let release = move || drop(guard);
    match outcome {
        Some(ended) => {
            let got = waiter.join().expect("the next holder's thread");
            let deleted = witness.wait_for(LONG, "the key is deleted", is_delete).at;
            println!(
                "{way:?}: reported after {} ms, minus grant {} ms, minus deletion {} ms",
                millis_between(broken, ended),
                millis_between(got, ended),
                millis_between(deleted, ended)
            );
            assert!(ended <= got && ended <= deleted, "{way:?}: reported late");
            release();
        }
        None => {
            println!("{way:?}: still held");
            assert!(held && !witness.seen().iter().any(is_delete), "{way:?}: lost, but not reported");
            proxy.pass();
            release();
            waiter.join().expect("the next holder's thread");
        }
    }
    proxy.pass();
    drop((holder, next));
    nothing_left(&Raw::connect(etcd.access()), &root, Duration::from_secs(ttl));
    referee.judge();
}
