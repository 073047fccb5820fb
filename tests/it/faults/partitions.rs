//! Networks that fail between a holder and etcd, and etcds that fail as a whole.

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

/// The partitions of one TTL that run at the same time.
const PARTITIONS: usize = 20;

/// The least that a holder is told before etcd may give its lock away, at the TTLs here.
const MARGIN: Duration = Duration::from_millis(300);

/// How long the next holder may wait for the lock beyond the TTL: etcd looks for expired leases each half second, and
/// deletes with a commit.
const EXPIRY: Duration = Duration::from_millis(1500);

/// The end of everything that is known to end.
const LONG: Duration = Duration::from_secs(60);

/// Purpose: a holder that is cut off from etcd must know that its lock is gone before the next one has it, at whatever
/// point between two renewals it is cut off.
#[test]
fn a_partitioned_holder_is_told_before_the_next_one_holds_at_a_ttl_of_3_s() {
    partitions(3);
}

/// Purpose: as above, with another relation of TTL, margin and renewals.
#[test]
fn a_partitioned_holder_is_told_before_the_next_one_holds_at_a_ttl_of_5_s() {
    partitions(5);
}

/// What became of one partition, in ms.
#[derive(Debug)]
struct Outcome {
    /// The next holder's grant to the old one's notice: late if positive.
    told_after_got: i64,
    /// etcd's delete, as a watch reported it, to the old holder's notice (O5).
    told_after_delete: i64,
    /// From the cut to the next holder's grant.
    got_after: Duration,
    /// For how long the machine stood still meanwhile.
    stalls: Duration,
}

impl Outcome {
    /// Told late, and not because the machine stood still for as long as the margin is wide: whoever is told then cannot
    /// even write down when.
    fn is_late(&self) -> bool {
        let excused = if self.stalls < MARGIN { 0 } else { self.stalls.as_millis() };
        i128::from(self.told_after_got.max(self.told_after_delete)) > excused.cast_signed()
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
    println!("TTL {ttl} s, told - got in ms: {:?}", sorted(|outcome| outcome.told_after_got));
    println!("TTL {ttl} s, told - deleted in ms: {:?}", sorted(|outcome| outcome.told_after_delete));
    println!(
        "TTL {ttl} s, cut to got in ms: {:?}",
        sorted(|outcome| i64::try_from(outcome.got_after.as_millis()).unwrap())
    );
    let limit = Duration::from_secs(ttl) + EXPIRY;
    for outcome in &outcomes {
        assert!(!outcome.is_late(), "told late: {outcome:?}");
        assert!(outcome.got_after <= limit + outcome.stalls, "the lock was stuck: {outcome:?}");
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
    // Nobody has to connect while the machine is busy with others' partitions.
    ready.wait();
    let guard = holder.new_lock(name).unwrap().lock().unwrap();
    let key = guard.etcd_key().to_owned();
    let told = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let waiter = {
        let lock = next.new_lock(name).unwrap();
        thread::spawn(move || {
            let guard = lock.lock().expect("the next holder");
            let got = Instant::now();
            referee.use_and_release(guard);
            got
        })
    };
    let queue = format!("{root}/{name}/");
    let queued = |seen: &Seen| seen.key.starts_with(&queue) && seen.key != key;
    witness.wait_for(LONG, "the next one queues", queued);
    referee.write(&guard);
    // At any point between two renewals.
    thread::sleep(Duration::from_secs(ttl).mul_f64(fastrand::f64() / 3.0));
    let cut = Instant::now();
    proxy.blackhole();
    let told = told.within(LONG).expect("the holder is told");
    assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    let got = waiter.join().expect("the next holder");
    let deleted = witness.wait_for_delete(LONG, &key).at;
    proxy.pass();
    // Late by less than a millisecond is late.
    let late = |earlier: Instant, later: Instant| match millis_between(earlier, later) {
        0 if later > earlier => 1,
        millis => millis,
    };
    let (told_after_got, told_after_delete) = (late(got, told), late(deleted, told));
    Outcome { told_after_got, told_after_delete, got_after: got - cut, stalls: stalls::since(cut) }
}

/// Purpose: a whole cluster that stops for longer than the TTL can tell nobody anything; the holder must know by its own
/// clock, and all must be well again once it goes on.
#[test]
fn a_cluster_that_stops_for_longer_than_the_ttl_costs_the_lock_on_time_and_nothing_else() {
    const TTL: u64 = 3;
    let cluster = Cluster::start(3);
    let root = fresh_root("all-stopped");
    let referee = Referee::new();
    let manager = LockManager::connect(cluster.endpoints(), &root, options(TTL)).unwrap();
    let lock = manager.new_lock("x").unwrap();
    let guard = lock.lock().unwrap();
    referee.write(&guard);
    let told = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let (key, token) = (guard.etcd_key().to_owned(), guard.token());

    cluster.members().iter().for_each(|member| member.stop());
    let stopped = Instant::now();
    let at = told.within(LONG).expect("the holder is told while everything stands still");
    assert!(at <= stopped + Duration::from_secs(TTL) + stalls::since(stopped), "told late");
    assert!(!guard.is_held() && guard.loss() == Some(LossReason::SessionExpired));
    println!("told {} ms after the stop", millis_between(stopped, at));
    let waiter = thread::spawn(move || lock.lock());
    thread::sleep((stopped + Duration::from_secs(TTL + 2)).saturating_duration_since(Instant::now()));

    cluster.members().iter().for_each(|member| member.cont());
    let continued = Instant::now();
    let next = within(LONG, "a new session comes by itself", || waiter.join().unwrap().unwrap());
    println!("locked anew {} ms after the members went on", millis_between(continued, Instant::now()));
    assert!(next.token() > token);
    referee.use_and_release(next);
    let raw = Raw::connect(cluster.access());
    eventually(Duration::from_secs(TTL + 3), "the old key is gone", || raw.get(&key).is_none());
    drop((guard, manager));
    nothing_left(&raw, &root, Duration::from_secs(TTL));
    referee.judge();
}

/// Purpose: a majority that is away for less than the time left must cost nobody a lock.
#[test]
fn a_quorum_that_is_lost_for_3_s_costs_nothing() {
    // Renewed a third of it ago at worst, and with an election after the 3 s, there must still be time left.
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

/// Purpose: without a quorum for long, holders must be told on time and calls must keep to their limits; with a quorum
/// again, everything must go on without help.
#[test]
fn a_quorum_that_is_lost_for_20_s_is_told_on_time_calls_end_and_it_recovers_alone() {
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
    let told = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let token = guard.token();
    let leader = cluster.wait_for_leader();
    let gone = [leader, (leader + 1) % 3];
    gone.iter().for_each(|&member| cluster.member(member).kill());
    let lost = Instant::now();

    let at = told.within(LONG).expect("the holder is told");
    assert!(at <= lost + Duration::from_secs(TTL) + stalls::since(lost), "told late");
    println!("told {} ms after the quorum was lost", millis_between(lost, at));
    let waiter = thread::spawn(move || lock.lock());
    let other = manager.new_lock("other").unwrap();
    while lost.elapsed() < Duration::from_secs(20) {
        let limit = Duration::from_millis(fastrand::u64(1..1500));
        let refused = referee.timed("lock_timeout", limit, || other.lock_timeout(limit));
        assert_eq!(
            refused.unwrap_err().code(),
            ErrorCode::Unavailable,
            "nobody has it: etcd cannot be asked"
        );
        let refused = referee.timed("try_lock", request, || other.try_lock());
        assert_eq!(refused.unwrap_err().code(), ErrorCode::Unavailable);
        let refused = referee.timed("lock_info", request, || manager.lock_info("x"));
        assert_eq!(refused.unwrap_err().code(), ErrorCode::Unavailable);
    }

    gone.iter().for_each(|&member| cluster.member(member).restart_without_waiting());
    let back = Instant::now();
    let next = within(LONG, "the waiter gets the lock", || waiter.join().unwrap().unwrap());
    println!("locked anew {} ms after two members were started", millis_between(back, Instant::now()));
    assert!(next.token() > token);
    referee.use_and_release(next);
    drop((guard, other, manager));
    let raw = Raw::connect(&cluster.access_without(leader));
    nothing_left(&raw, &root, Duration::from_secs(TTL));
    referee.judge();
}

/// What a network does to one direction.
#[derive(Clone, Copy, Debug)]
enum OneWay {
    RequestsLost,
    AnswersLost,
    AnswersLate(Duration),
}

/// Purpose: a network that works in one direction only lets renewals arrive, or answers, but never both: a holder must
/// not count on what it has not heard in time.
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
    let told = HoldEnd::of_holder(&guard, referee.inside(&guard));
    let waiter = {
        let lock = next.new_lock("x").unwrap();
        thread::spawn(move || {
            let guard = lock.lock().expect("the next holder");
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
    let outcome = told.within(Duration::from_secs(3 * ttl));
    let held = guard.is_held();
    // A guard keeps its manager alive, and with it a session.
    let release = move || drop(guard);
    match outcome {
        Some(told) => {
            let got = waiter.join().expect("the next holder");
            let deleted = witness.wait_for(LONG, "the key is deleted", is_delete).at;
            println!(
                "{way:?}: told after {} ms, told - got {} ms, told - deleted {} ms",
                millis_between(broken, told),
                millis_between(got, told),
                millis_between(deleted, told)
            );
            assert!(told <= got && told <= deleted, "{way:?}: told late");
            release();
        }
        None => {
            println!("{way:?}: still held");
            assert!(held && !witness.seen().iter().any(is_delete), "{way:?}: lost, and not told");
            proxy.pass();
            release();
            waiter.join().expect("the next holder");
        }
    }
    proxy.pass();
    drop((holder, next));
    nothing_left(&Raw::connect(etcd.access()), &root, Duration::from_secs(ttl));
    referee.judge();
}
