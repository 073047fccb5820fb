//! An abandoned acquire must never take effect.

use std::time::{Duration, Instant};

use etcd_lock::{LockError, LockManager};

use crate::faults::ground;
use crate::support::stalls::{self, assert_within};
use crate::support::witness::{Seen, What, Witness};
use crate::support::{Cluster, Proxy, Raw, eventually, fresh_root, lease_of};

const TTL: Duration = Duration::from_secs(5);
/// A deposed leader that continues may revoke leases whose renewal it has not seen for a TTL (etcd #15247), so the stop
/// together with the age of the last renewal must be well below that.
const TTL_BESIDE_A_DEPOSED_LEADER: Duration = Duration::from_secs(20);
/// How long an abandoned request may block other callers.
const BLOCKED: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(20);

/// Three members, and a caller whose requests all go to the one that will be stopped.
struct Parked {
    cluster: Cluster,
    /// Proxies in front of all members, so that the caller finds the right one first.
    _doors: Vec<Proxy>,
    stopped: usize,
    ttl: Duration,
    root: String,
    caller: LockManager,
    other: LockManager,
    witness: Witness,
}

#[derive(Clone, Copy, PartialEq)]
enum Rank {
    Leader,
    Follower,
}

impl Parked {
    fn new(rank: Rank, request_timeout: Duration) -> Self {
        let cluster = Cluster::start(3);
        let leader = cluster.leader().expect("a leader");
        let (stopped, ttl) = match rank {
            Rank::Leader => (leader, TTL_BESIDE_A_DEPOSED_LEADER),
            Rank::Follower => ((leader + 1) % 3, TTL),
        };
        let root = fresh_root("orphans");
        let doors: Vec<Proxy> = cluster.members().iter().map(Proxy::of).collect();
        let others = || (0..3).filter(|&index| index != stopped);
        others().for_each(|index| doors[index].blackhole());
        let access = cluster.access().at(doors.iter().map(Proxy::endpoint));
        let options = ground::options(&access, ttl).request_timeout(request_timeout);
        let caller = ground::connect_with(&access, &root, options);
        others().for_each(|index| doors[index].pass());
        let running = cluster.access().at(others().map(|index| cluster.member(index).endpoint()));
        let other = ground::connect(&running, &root, ttl);
        let witness = Witness::of(&running, &root);
        Self { cluster, _doors: doors, stopped, ttl, root, caller, other, witness }
    }

    /// Stops the member, lets the caller time out with its acquire in the member's socket, and lets another client lock
    /// and unlock.
    fn time_out_while_stopped(&self) {
        let lock = self.caller.new_lock("x").unwrap();
        self.cluster.member(self.stopped).stop();
        let start = Instant::now();
        let limit = Duration::from_millis(400);
        assert!(matches!(lock.lock_timeout(limit), Err(LockError::Unavailable { .. })));
        assert_within(start, limit + Duration::from_millis(100), "a timed out call returns");
        let guard = self.other.new_lock("x").unwrap().lock_timeout(SOON).unwrap();
        guard.unlock().unwrap();
    }

    fn continue_member(&self) -> Instant {
        let continued = Instant::now();
        self.cluster.member(self.stopped).cont();
        continued
    }

    fn prefix(&self) -> String {
        format!("{}/x/", self.root)
    }

    /// The caller's contenders that were put so far.
    fn orphans(&self) -> Vec<Seen> {
        let lease = format!("{:x}-", lease_of(&self.caller));
        let is_ours = |seen: &Seen| {
            seen.key.starts_with(&(self.prefix() + &lease)) && matches!(seen.what, What::Put { .. })
        };
        self.witness.seen().into_iter().filter(is_ours).collect()
    }

    /// From here on no caller is blocked, and each orphan was deleted within a second.
    fn nobody_is_blocked(&self, continued: Instant) {
        let lock = self.other.new_lock("x").unwrap();
        // Also allows for requests that are still in a member that has just continued.
        let end = continued + Duration::from_secs(2);
        let mut longest_wait = Duration::ZERO;
        let mut token = None;
        while Instant::now() < end {
            let asked = Instant::now();
            let guard = lock.lock_timeout(SOON).expect("the lock is free all the time");
            longest_wait = longest_wait.max(assert_within(asked, BLOCKED, "a free lock"));
            assert!(token < Some(guard.token()), "tokens grow");
            token = Some(guard.token());
            guard.unlock().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        let orphans = self.orphans();
        let lived = orphans.iter().map(|orphan| {
            let gone = self.witness.wait_for_delete(SOON, &orphan.key);
            gone.at.saturating_duration_since(orphan.at)
        });
        let longest = lived.max().unwrap_or_default();
        println!(
            "row 11: {} orphans, the longest lived {longest:?}; the longest wait for the lock {longest_wait:?}",
            orphans.len()
        );
        assert!(longest < BLOCKED + stalls::since(continued), "an orphan lived for {longest:?}");
        let raw = Raw::connect(self.cluster.access());
        eventually(Duration::from_secs(1), "the name has no key", || raw.count(&self.prefix()) == 0);
    }

    fn end(self) {
        let Self { cluster, ttl, root, caller, other, .. } = self;
        assert_eq!(other.stats().sessions, 1, "its session was never lost");
        drop((caller, other));
        ground::assert_nothing_left(cluster.access(), &root, ttl);
    }
}

/// The request is still waited for when the member continues: it is executed, and its key deleted at once.
#[test]
fn an_acquire_executed_late_by_a_follower_is_undone() {
    let parked = Parked::new(Rank::Follower, Duration::from_secs(5));
    parked.time_out_while_stopped();
    let continued = parked.continue_member();
    parked.nobody_is_blocked(continued);
    assert_eq!(parked.caller.stats().sessions, 1, "the session is kept");
    parked.end();
}

/// The same with the leader: the other members elect a new one meanwhile.
#[test]
fn an_acquire_executed_late_by_a_deposed_leader_is_undone() {
    let parked = Parked::new(Rank::Leader, Duration::from_secs(5));
    parked.time_out_while_stopped();
    let continued = parked.continue_member();
    parked.nobody_is_blocked(continued);
    parked.end();
}

/// The request was abandoned before the member continues: the epoch has changed, so it can never take effect.
#[test]
fn an_acquire_abandoned_for_good_never_takes_effect() {
    let parked = Parked::new(Rank::Follower, Duration::from_millis(700));
    parked.time_out_while_stopped();
    let session = format!("{}/~session/{:x}", parked.root, lease_of(&parked.caller));
    parked.witness.wait_for(SOON, "the session key is put again", |seen| {
        seen.key == session && matches!(seen.what, What::Put { .. })
    });
    let before = parked.orphans().len();
    let continued = parked.continue_member();
    parked.nobody_is_blocked(continued);
    assert_eq!(parked.orphans().len(), before, "the parked request took effect");
    assert_eq!(before, 0, "the abandoned key was put");
    parked.end();
}
