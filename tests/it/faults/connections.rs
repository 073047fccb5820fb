//! Connections that break, and answers that are lost.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::{LockManager, LockManagerOptions};

use crate::support::doors::options;
use crate::support::process::alone;
use crate::support::proxy::Loss;
use crate::support::referee::{ends_with_its_lease, nothing_left};
use crate::support::{Etcd, Proxy, Raw, Referee, eventually, fresh_root, lease_of, wait, within};

/// The time limit of everything that is known to end.
const LONG: Duration = Duration::from_secs(60);

/// Purpose: short-lived connections must not stop waiters, lose locks, or keep the I/O thread busy.
#[test]
#[cfg(target_os = "linux")]
fn waiters_progress_at_little_cost_while_every_connection_is_reset_each_200_ms() {
    let name =
        "faults::connections::waiters_progress_at_little_cost_while_every_connection_is_reset_each_200_ms";
    // In a process of its own, so that only our I/O threads' time is counted.
    alone(name, Duration::from_secs(120), || {
        const FOR: Duration = Duration::from_secs(30);
        const SLICE: Duration = Duration::from_secs(6);
        let etcd = Etcd::start();
        let root = fresh_root("resets");
        let referee = Referee::new();
        let proxy = Proxy::of(&etcd);
        let managers: Vec<LockManager> =
            (0..2).map(|_| LockManager::connect(&[proxy.endpoint()], &root, options(5)).unwrap()).collect();
        let (over, cycles) = (AtomicBool::new(false), AtomicU64::new(0));
        let (mut spent, mut progress) = (Duration::ZERO, Vec::new());
        thread::scope(|scope| {
            for lock in managers.iter().flat_map(|manager| {
                // Three waiters in each manager for one name.
                (0..3).map(|_| manager.new_lock("x").unwrap())
            }) {
                let (over, cycles) = (&over, &cycles);
                scope.spawn(move || {
                    while !over.load(Ordering::Relaxed) {
                        let guard = lock.lock().expect("a reset causes no error");
                        let inside = referee.inside(&guard);
                        referee.write(&guard);
                        thread::sleep(Duration::from_millis(20));
                        assert!(guard.is_held(), "a reset loses no hold");
                        drop(inside);
                        cycles.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            let (begun, before) = (Instant::now(), wait::cpu_time_of_threads("etcd-lock-io"));
            let mut slice = (begun, 0);
            while begun.elapsed() < FOR {
                proxy.reset_all();
                thread::sleep(Duration::from_millis(200));
                if slice.0.elapsed() >= SLICE {
                    let now = cycles.load(Ordering::Relaxed);
                    progress.push(now - slice.1);
                    slice = (Instant::now(), now);
                }
            }
            spent = wait::cpu_time_of_threads("etcd-lock-io") - before;
            over.store(true, Ordering::Relaxed);
        });
        let share = spent.as_secs_f64() / FOR.as_secs_f64();
        let sessions: Vec<u64> = managers.iter().map(|manager| manager.stats().sessions).collect();
        println!(
            "cycles in each {SLICE:?}: {progress:?}; {:.1} % of a core for two managers; sessions {sessions:?}; \
             connections {}",
            share * 100.0,
            proxy.accepted()
        );
        assert!(progress.iter().all(|&cycles| cycles > 0), "waiters made no progress: {progress:?}");
        assert!(share < 0.2 * 2.0, "{:.1} % of a core", share * 100.0);
        assert_eq!(sessions, [1, 1], "a session was lost");
        drop(managers);
        nothing_left(&Raw::connect(etcd.access()), &root, Duration::from_secs(5));
        referee.judge();
    });
}

/// A server with a proxy, and a manager behind it that soon regards an answer as lost.
struct Setting {
    referee: &'static Referee,
    etcd: Etcd,
    proxy: Proxy,
    root: String,
    raw: Raw,
}

const TTL: u64 = 3;
const REQUEST: Duration = Duration::from_secs(1);

impl Setting {
    fn new() -> Self {
        let etcd = Etcd::start();
        let (proxy, raw) = (Proxy::of(&etcd), Raw::connect(etcd.access()));
        Self { referee: Referee::new(), etcd, proxy, root: fresh_root("lost-answer"), raw }
    }

    fn options() -> LockManagerOptions {
        options(TTL).request_timeout(REQUEST)
    }

    fn connect(&self) -> LockManager {
        let manager = LockManager::connect(&[self.proxy.endpoint()], &self.root, Self::options()).unwrap();
        // The watch on the session key is open, so the test's own requests are the only ones.
        let standing = || self.etcd.metric("etcd_debugging_mvcc_watcher_total") >= 1.0;
        eventually(LONG, "the session's watch is open", standing);
        manager
    }

    fn lost(&self, before: u64) {
        eventually(LONG, "the answer is lost", || self.proxy.lost_answers() > before);
    }

    /// The contenders for the lock `x`.
    fn contenders(&self) -> Vec<crate::support::raw::Kv> {
        self.raw.keys(&format!("{}/x/", self.root))
    }

    /// Checks that nothing is left: no keys and, after a TTL, no leases.
    fn end(self, manager: LockManager) {
        // Close once more, unless the manager is closed.
        if let Ok(guard) = manager.new_lock("x").and_then(|lock| lock.lock()) {
            self.referee.use_and_unlock(guard, REQUEST).unwrap();
        }
        drop(manager);
        self.referee.judge();
        nothing_left(&self.raw, &self.root, Duration::from_secs(TTL));
        let ttl = Duration::from_secs(TTL);
        ends_with_its_lease(ttl, "no lease is left", || self.raw.leases().is_empty());
    }
}

/// The two ways to lose an answer.
fn each_loss(test: impl Fn(Loss) + Sync) {
    thread::scope(|scope| {
        for loss in [Loss::Reset, Loss::Silence] {
            let test = &test;
            scope.spawn(move || test(loss));
        }
    });
}

/// Purpose: an acquire that was executed with its answer lost must end as one key, and one holder with that key's
/// token.
#[test]
fn a_lost_answer_to_an_acquire_leaves_one_key_and_its_token() {
    each_loss(|loss| {
        let setting = Setting::new();
        let manager = setting.connect();
        setting.proxy.lose_next_answer(loss);
        let guard = manager.new_lock("x").unwrap().lock().unwrap();
        assert_eq!(setting.proxy.lost_answers(), 1);
        let keys = setting.contenders();
        assert_eq!(keys.len(), 1, "{loss:?}: {keys:?}");
        assert_eq!((keys[0].key.as_str(), keys[0].create_revision), (guard.etcd_key(), token(&guard)));
        // However the manager resolves the unknown outcome, it does not touch the key that it holds.
        thread::sleep(Duration::from_secs(1));
        assert!(guard.is_held() && setting.contenders() == keys);
        setting.referee.use_and_unlock(guard, REQUEST).unwrap();
        assert_eq!(setting.contenders(), []);
        setting.end(manager);
    });
}

/// Purpose: a release whose answer is lost is repeated; the repetition must not delete the contender that was put
/// meanwhile.
#[test]
fn a_lost_answer_to_a_release_does_not_cost_the_next_hold_of_the_name() {
    each_loss(|loss| {
        let setting = Setting::new();
        let manager = setting.connect();
        let lock = manager.new_lock("x").unwrap();
        let first = lock.lock().unwrap();
        let token_before = first.token();
        setting.proxy.lose_next_answer(loss);
        setting.referee.use_and_release(first);
        let guard = lock.lock().unwrap();
        setting.lost(0);
        assert!(guard.token() > token_before);
        let keys = setting.contenders();
        assert!(keys.iter().any(|kv| kv.key == guard.etcd_key()), "{loss:?}: {keys:?}");
        thread::sleep(Duration::from_secs(2));
        assert!(guard.is_held(), "{loss:?}: {:?}", guard.loss());
        let keys = setting.contenders();
        assert_eq!(keys.len(), 1, "{loss:?}: {keys:?}");
        assert_eq!((keys[0].key.as_str(), keys[0].create_revision), (guard.etcd_key(), token(&guard)));
        // The answer to the next release arrives.
        setting.referee.use_and_unlock(guard, REQUEST).unwrap();

        // And one that a caller waits for.
        let guard = lock.lock().unwrap();
        setting.proxy.lose_next_answer(loss);
        let unlocked = setting.referee.use_and_unlock(guard, REQUEST);
        setting.lost(1);
        if let Err(error) = unlocked {
            // The outcome was not certain within the time of one request, so the manager continued.
            assert!(error.is_retryable(), "{loss:?}: {error:?}");
        }
        eventually(Duration::from_secs(TTL), "the key is deleted", || setting.contenders().is_empty());
        drop(lock);
        setting.end(manager);
    });
}

/// Purpose: a granted lease whose grant's answer is lost has no keys; it must expire, and another one must be granted.
#[test]
fn a_lost_answer_to_a_grant_costs_a_lease_for_one_ttl() {
    each_loss(|loss| {
        let setting = Setting::new();
        // The first contact makes two reads before it requests a lease.
        setting.proxy.lose_answer_after(2, loss);
        let manager = setting.connect();
        assert_eq!(setting.proxy.lost_answers(), 1);
        assert_eq!(setting.etcd.requests("LeaseGrant"), 2, "{loss:?}: another answer was lost");
        let own = lease_of(&manager);
        let ttl = Duration::from_secs(TTL);
        ends_with_its_lease(ttl, "the other lease has expired", || setting.raw.leases() == [own]);
        assert!(manager.session().is_alive());
        within(LONG, "a lock", {
            let lock = manager.new_lock("x").unwrap();
            move || drop(lock.lock().unwrap())
        });
        setting.end(manager);
    });
}

/// Purpose: a manager whose last answer is lost must leave nothing in etcd.
#[test]
fn a_lost_answer_to_a_revoke_leaves_nothing() {
    each_loss(|loss| {
        let setting = Setting::new();
        let manager = setting.connect();
        let guard = manager.new_lock("x").unwrap().lock().unwrap();
        setting.proxy.lose_next_answer(loss);
        // `close_timeout` is two seconds.
        let close = || manager.clone().close();
        let closed = setting.referee.timed("close", Duration::from_secs(2), close);
        assert!(guard.done().recv().is_err());
        setting.lost(0);
        if let Err(error) = closed {
            assert!(error.is_retryable(), "{loss:?}: {error:?}");
        }
        drop(guard);
        eventually(Duration::from_secs(1), "the keys are deleted at once", || {
            setting.raw.count(&setting.root) == 0
        });
        setting.end(manager);
    });
}

fn token(guard: &etcd_lock::LockGuard) -> i64 {
    i64::try_from(guard.token().as_u64()).unwrap()
}
