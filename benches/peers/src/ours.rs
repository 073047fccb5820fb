//! This library.

use std::thread;

use etcd_lock::{DistributedLock, LockManager, Stats};

use crate::part::Part;
use crate::rows::Shape;
use crate::window::{Sheet, Turn, Window};

pub(crate) fn run(part: &Part) -> Sheet {
    let workers = part.shape.workers_each();
    let sessions = if matches!(part.shape, Shape::Sessions { .. }) { workers } else { 1 };
    let connect = |_| LockManager::connect(&part.endpoints, &part.prefix, Default::default()).unwrap();
    let managers: Vec<LockManager> = (0..sessions).map(connect).collect();
    let locks = |worker: usize| {
        let manager = &managers[worker % sessions];
        part.names(worker).iter().map(|name| manager.new_lock(name).unwrap()).collect()
    };
    let locks: Vec<Vec<DistributedLock>> = (0..workers).map(locks).collect();
    let all = || managers.iter().map(LockManager::stats).collect::<Vec<_>>();
    let window = Window::agreed();
    let (turns, before, after) = thread::scope(|scope| {
        let workers: Vec<_> =
            locks.iter().map(|locks| scope.spawn(move || take_turns(locks, part.shape, window))).collect();
        window.wait_for_begin();
        let before = all();
        window.wait_for_end();
        let after = all();
        (workers.into_iter().map(|worker| worker.join().unwrap()).collect(), before, after)
    });
    for manager in managers {
        let stats = manager.stats();
        assert_eq!((stats.lost.total(), stats.sessions), (0, 1), "a session was lost: nothing to compare");
        manager.close().unwrap();
    }
    let sum = |stats: &[Stats], count: fn(&Stats) -> u64| stats.iter().map(count).sum::<u64>();
    let grown = |count: fn(&Stats) -> u64| sum(&after, count) - sum(&before, count);
    Sheet {
        turns,
        steps: grown(|stats| stats.acquired + stats.released),
        transactions: grown(|stats| stats.rpcs.txn),
    }
}

fn take_turns(locks: &[DistributedLock], shape: Shape, window: Window) -> Vec<Turn> {
    let mut turns = Vec::new();
    for lock in locks.iter().cycle() {
        if window.is_over() {
            break;
        }
        let asked = window.now();
        let guard = lock.lock().unwrap();
        let granted = window.now();
        let releasing = window.now();
        match shape {
            Shape::Confirmed => guard.unlock().unwrap(),
            _ => drop(guard),
        }
        window.note(&mut turns, [asked, granted, releasing]);
    }
    turns
}
