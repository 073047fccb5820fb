//! Time that passes because a test says so.

use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

use super::{ClientId, MemoryStore};
use crate::clock::Time;

/// The time passes in steps, short enough that a session of the shortest TTL, 2 s, is renewed in time, and that a holder
/// whose safety margin is the usual one gives up a step before its lease ends.
const STEP: Duration = Duration::from_millis(150);

/// After so long without a step, a manager whose I/O thread hangs is not waited for any more.
const STUCK: Duration = Duration::from_secs(1);

/// How often it is looked whether the managers have caught up; a renewal takes them some tens of microseconds.
const LOOK: Duration = Duration::from_micros(20);

impl MemoryStore {
    /// Lets time pass at once, for the store and for every manager on it: leases and holds expire, waits time out.
    ///
    /// It passes in small steps, and managers do what is due on the way: who is connected renews its session and
    /// keeps its holds, who is [disconnected](Self::disconnect) is told of the loss before anybody else has the lock. So
    /// a test of a partition takes no TTL. Answers that are [delayed](Self::delay) arrive when the time has passed them. Time
    /// passes by itself, too, as ever.
    ///
    /// [`Instant`]s and limits of requests stay those of the machine's clock, but for an answer that is delayed: a request
    /// of a manager that is cut off is given up after a real [`request_timeout`](crate::LockManagerOptions::request_timeout).
    ///
    /// # Blocking
    ///
    /// For every second that passes some milliseconds; a manager whose I/O thread hangs costs one second, once.
    ///
    /// # Examples
    ///
    /// ```
    /// use std::time::Duration;
    /// use etcd_lock::memory::MemoryStore;
    /// use etcd_lock::{LockError, LockManager, LossReason};
    ///
    /// # fn main() -> Result<(), LockError> {
    /// let store = MemoryStore::new();
    /// let cut_off = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let other = LockManager::in_memory(&store, "/app/locks", Default::default())?;
    /// let guard = cut_off.new_lock("report")?.lock()?;
    /// let kept = other.new_lock("mail")?.lock()?;
    ///
    /// store.disconnect(&cut_off);
    /// store.advance(Duration::from_secs(31)); // more than the TTL of 30 s
    ///
    /// assert!(guard.done().recv().is_err());
    /// assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
    /// let next = other.new_lock("report")?.lock()?;
    /// assert!(next.token() > guard.token());
    /// assert!(kept.is_held());
    /// # Ok(())
    /// # }
    /// ```
    pub fn advance(&self, by: Duration) {
        let mut stuck = BTreeSet::new();
        let mut left = by;
        while !left.is_zero() {
            let step = left.min(STEP);
            left -= step;
            self.step(step, &mut stuck);
            self.shared.state.lock().expire_due(self.shared.clock.now());
        }
        // What the last step ended is told.
        self.step(Duration::ZERO, &mut stuck);
    }

    fn step(&self, step: Duration, stuck: &mut BTreeSet<ClientId>) {
        // What managers see after the move is not earlier than this.
        let now = self.shared.clock.now() + step;
        self.shared.clock.advance(step);
        self.wait_for_managers(now, stuck);
    }

    /// Until every manager has done what was due at `now`: has its answers, if it is connected.
    fn wait_for_managers(&self, now: Time, stuck: &mut BTreeSet<ClientId>) {
        let begun = Instant::now();
        loop {
            let behind = self.shared.state.lock().behind(now);
            if behind.iter().all(|id| stuck.contains(id)) {
                return;
            }
            if begun.elapsed() > STUCK {
                stuck.extend(behind);
                return;
            }
            thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LockError, LockManager, LockManagerOptions, LossReason};

    const TTL: Duration = Duration::from_secs(30);
    /// Real time, which is not to pass: far below the TTL.
    const AT_ONCE: Duration = Duration::from_secs(10);

    fn manager(store: &MemoryStore, ttl: Duration) -> LockManager {
        LockManager::in_memory(store, "/test", LockManagerOptions::default().ttl(ttl)).unwrap()
    }

    #[test]
    fn a_partition_takes_no_real_ttl() {
        let (store, begun) = (MemoryStore::new(), Instant::now());
        let (cut_off, other) = (manager(&store, TTL), manager(&store, TTL));
        for _ in 0..10 {
            let guard = cut_off.new_lock("a").unwrap().lock_timeout(TTL).unwrap();
            let kept = other.new_lock("b").unwrap().lock_timeout(TTL).unwrap();
            let next = other.new_lock("a").unwrap().enqueue().unwrap();
            store.disconnect(&cut_off);
            store.advance(TTL - TTL / 10 - Duration::from_secs(1));
            assert!(guard.is_held() && next.ready().try_recv().is_err_and(|error| error.is_empty()));
            store.advance(Duration::from_secs(2));
            assert!(guard.done().recv_timeout(AT_ONCE).is_err_and(|error| error.is_disconnected()));
            assert!(!guard.is_held() && !cut_off.session().is_alive());
            assert_eq!(guard.loss(), Some(LossReason::SessionExpired));
            assert!(next.ready().try_recv().is_err_and(|error| error.is_empty()), "told before the next one");
            store.advance(TTL);
            let next = next.wait().unwrap();
            assert!(next.token() > guard.token() && kept.is_held());
            store.reconnect(&cut_off);
            drop((guard, kept, next));
        }
        assert_eq!(other.stats().sessions, 1, "who is connected renews on the way");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn connected_managers_keep_their_holds_however_much_time_passes() {
        let (store, begun) = (MemoryStore::new(), Instant::now());
        let managers = [Duration::from_secs(2), TTL].map(|ttl| manager(&store, ttl));
        let guards =
            ["a", "b"].map(|name| (name, managers[usize::from(name == "b")].new_lock(name).unwrap()));
        let guards = guards.map(|(_, lock)| lock.lock().unwrap());
        store.advance(Duration::from_secs(600));
        assert!(guards.iter().all(|guard| guard.is_held()));
        for manager in &managers {
            assert_eq!(manager.stats().sessions, 1);
        }
        assert!(begun.elapsed() < 2 * AT_ONCE, "{:?}", begun.elapsed());
    }

    #[test]
    fn answers_that_are_under_way_arrive_by_the_store_s_time_and_keep_the_session() {
        for (ttl, delay) in [(TTL, 1500), (TTL, 200), (Duration::from_secs(4), 400)] {
            let (store, begun) = (MemoryStore::new(), Instant::now());
            let manager = manager(&store, ttl);
            let guard = manager.new_lock("a").unwrap().lock().unwrap();
            store.delay(&manager, Duration::from_millis(delay));
            store.advance(Duration::from_secs(300));
            assert!(guard.is_held(), "lost: {:?}, with a delay of {delay} ms", guard.loss());
            assert_eq!(manager.stats().sessions, 1);
            store.delay(&manager, Duration::ZERO);
            drop((guard, manager));
            let took = begun.elapsed();
            assert!(took < Duration::from_secs(4), "{took:?} with a delay of {delay} ms");
        }
    }

    #[test]
    fn an_answer_later_than_its_request_s_limit_never_arrives() {
        let (store, begun) = (MemoryStore::new(), Instant::now());
        let manager = manager(&store, TTL);
        let guard = manager.new_lock("a").unwrap().lock().unwrap();
        store.delay(&manager, TTL);
        store.advance(2 * TTL);
        assert_eq!(guard.loss(), Some(LossReason::SessionExpired), "as on any cluster that is so slow");
        assert!(begun.elapsed() < AT_ONCE, "{:?}", begun.elapsed());
        store.delay(&manager, Duration::ZERO);
        store.advance(TTL);
        assert!(manager.new_lock("a").unwrap().lock_timeout(TTL).unwrap().is_held());
    }

    #[test]
    fn waits_end_by_the_store_s_time() {
        let store = MemoryStore::new();
        let (holder, other) = (manager(&store, TTL), manager(&store, TTL));
        let _guard = holder.new_lock("a").unwrap().lock().unwrap();
        let lock = other.new_lock("a").unwrap();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| (lock.lock_timeout(100 * TTL), Instant::now()));
            while other.stats().waiting == 0 {
                thread::yield_now();
            }
            let begun = Instant::now();
            store.advance(100 * TTL + TTL);
            let (error, ended) = waiting.join().unwrap();
            assert!(
                matches!(error, Err(LockError::Timeout { waited, .. }) if waited >= 100 * TTL),
                "{error:?}"
            );
            assert!(ended - begun < 3 * AT_ONCE);
        });
    }
}
