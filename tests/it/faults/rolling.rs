//! A rolling restart: each member is down once, and neither holders nor waiters notice.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etcd_lock::LockError;

use crate::faults::ground::{REQUEST_TIMEOUT, assert_nothing_left, connect, options};
use crate::support::hold_end::HoldEnd;
use crate::support::{Cluster, Referee, eventually, fresh_root};

const TTL: Duration = Duration::from_secs(5);
const MANAGERS: usize = 3;
const THREADS: usize = 4;
const NAMES: usize = 5;

/// The number of holds that the workers take before, between and after the restarts.
const LOAD: usize = 200;

/// Restarts the members one after the other under the load of workers, which are stopped at the end; also if a step
/// fails, since their scope waits for them.
fn restart_each_member(cluster: &Cluster, referee: &Referee, stop: &AtomicBool) {
    let _stopping = StopWorkers(stop);
    let under_load = || {
        let before = referee.holds();
        eventually(Duration::from_secs(30), "the workers take locks", || referee.holds() >= before + LOAD);
    };
    for member in cluster.members() {
        under_load();
        member.restart();
        eventually(Duration::from_secs(30), "the cluster has a leader", || cluster.leader().is_some());
    }
    under_load();
}

struct StopWorkers<'a>(&'a AtomicBool);

impl Drop for StopWorkers<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Three members restarted one after the other under load: no `done()` closes, no call fails.
#[test]
fn a_rolling_restart_is_not_noticed() {
    let cluster = Cluster::start(3);
    let root = fresh_root("rolling");
    let managers: Vec<_> = (0..MANAGERS).map(|_| connect(cluster.access(), &root, TTL)).collect();
    let held: Vec<_> = managers
        .iter()
        .enumerate()
        .map(|(n, manager)| manager.new_lock(&format!("held-{n}")).unwrap().lock().unwrap())
        .collect();
    let ended: Vec<HoldEnd> = held.iter().map(HoldEnd::of).collect();
    let (referee, stop) = (Referee::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..MANAGERS * THREADS)
            .map(|n| {
                let (manager, stop) = (&managers[n % MANAGERS], &stop);
                scope.spawn(move || -> Result<Duration, LockError> {
                    let mut longest = Duration::ZERO;
                    while !stop.load(Ordering::Relaxed) {
                        let name = format!("x{}", fastrand::usize(..NAMES));
                        let start = Instant::now();
                        let guard = manager.new_lock(&name)?.lock()?;
                        longest = longest.max(start.elapsed());
                        let inside = referee.inside(&guard);
                        std::thread::sleep(Duration::from_millis(fastrand::u64(0..5)));
                        assert!(referee.write(&guard), "never stale");
                        assert!(guard.done().try_recv().is_err_and(|error| error.is_empty()));
                        drop(inside);
                        // The release of a dropped guard reports no error, that of `unlock` does.
                        if fastrand::bool() {
                            referee.timed("unlock", REQUEST_TIMEOUT, || guard.unlock())?;
                        }
                    }
                    Ok(longest)
                })
            })
            .collect();
        restart_each_member(&cluster, referee, &stop);
        let longest = workers.into_iter().map(|worker| worker.join().unwrap().expect("no call fails"));
        let longest = longest.max().unwrap_or_default();
        println!("row 19: {} holds, the longest wait for one {longest:?}", referee.holds());
    });
    assert!(ended.iter().all(HoldEnd::not_yet), "a done() closed");
    held.into_iter().for_each(|guard| guard.unlock().unwrap());
    referee.judge();
    for manager in &managers {
        assert_eq!((manager.stats().lost.total(), manager.stats().sessions), (0, 1));
    }
    drop(managers);
    assert_nothing_left(cluster.access(), &root, TTL);
}

/// The same with a user, whose tokens a restarted member does not know.
#[test]
fn a_rolling_restart_with_authentication_is_not_noticed() {
    let root = fresh_root("rolling");
    let cluster = crate::support::Setup::default().user("locker", "secret", &root).start_cluster(3);
    let access = cluster.access().as_user("locker", "secret");
    let manager = crate::faults::ground::connect_with(&access, &root, options(&access, TTL));
    let held = manager.new_lock("held").unwrap().lock().unwrap();
    let ended = HoldEnd::of(&held);
    let (referee, stop) = (Referee::new(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|n| {
                let (manager, stop) = (&manager, &stop);
                scope.spawn(move || -> Result<(), LockError> {
                    let lock = manager.new_lock(&format!("x{}", n % 2))?;
                    while !stop.load(Ordering::Relaxed) {
                        let guard = lock.lock()?;
                        std::thread::sleep(Duration::from_millis(2));
                        referee.use_and_unlock(guard, REQUEST_TIMEOUT)?;
                    }
                    Ok(())
                })
            })
            .collect();
        restart_each_member(&cluster, referee, &stop);
        for worker in workers {
            worker.join().unwrap().expect("no call fails");
        }
    });
    assert!(ended.not_yet(), "done() closed");
    held.unlock().unwrap();
    assert_eq!((manager.stats().lost.total(), manager.stats().sessions), (0, 1));
    referee.judge();
    drop(manager);
    assert_nothing_left(cluster.access(), &root, TTL);
}
