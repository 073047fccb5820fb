//! This library.

use std::thread;
use std::time::Instant;

use etcd_lock::{DistributedLock, LockManager, Stats};

use crate::Setting;
use crate::rows::Shape;
use crate::window::{Figures, Relay, Tally, Window};

pub(crate) fn run(setting: &Setting) -> Figures {
    let shape = setting.row.shape;
    let connect = || LockManager::connect(&setting.endpoints, &setting.prefix, Default::default()).unwrap();
    let managers = if let Shape::HandOver { sessions } = shape { sessions } else { 1 };
    let managers: Vec<LockManager> = (0..managers).map(|_| connect()).collect();
    let window = Window::opens_in(setting.warm_up, setting.measured);
    let relay = Relay::default();
    let workers: Vec<Worker<'_>> = (0..shape.workers())
        .map(|number| {
            let manager = &managers[number % managers.len()];
            let name = |name| if shape.is_shared() { "shared".into() } else { format!("{number}-{name}") };
            let locks = (0..shape.names()).map(|n| manager.new_lock(&name(n)).unwrap()).collect();
            Worker { number, locks, shape, relay: &relay, window }
        })
        .collect();
    let (tallies, batch) = thread::scope(|scope| {
        let threads: Vec<_> = workers.into_iter().map(|worker| scope.spawn(move || worker.run())).collect();
        thread::sleep(window.from().saturating_duration_since(Instant::now()));
        let before: Vec<Stats> = managers.iter().map(LockManager::stats).collect();
        thread::sleep(window.until().saturating_duration_since(Instant::now()));
        let after: Vec<Stats> = managers.iter().map(LockManager::stats).collect();
        let tallies: Vec<Tally> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
        (tallies, batch(&before, &after))
    });
    for manager in managers {
        let stats = manager.stats();
        assert_eq!((stats.lost.total(), stats.sessions), (0, 1), "a session was lost: nothing to compare");
        manager.close().unwrap();
    }
    Figures { batch, ..window.figures(tallies) }
}

struct Worker<'a> {
    number: usize,
    locks: Vec<DistributedLock>,
    shape: Shape,
    relay: &'a Relay,
    window: Window,
}

impl Worker<'_> {
    fn run(self) -> Tally {
        let mut tally = Tally::new(self.window);
        for lock in self.locks.iter().cycle() {
            if self.window.is_over() {
                break;
            }
            let start = Instant::now();
            let guard = lock.lock().unwrap();
            let mut latency = Some(start.elapsed());
            if self.shape.is_shared() {
                latency = self.relay.granted(self.number);
                self.relay.releasing(self.number);
            }
            match self.shape {
                Shape::Confirmed => guard.unlock().unwrap(),
                _ => drop(guard),
            }
            tally.cycle(latency);
        }
        tally
    }
}

/// Acquires and releases for each transaction.
fn batch(before: &[Stats], after: &[Stats]) -> Option<f64> {
    let grown = |count: fn(&Stats) -> u64| {
        after.iter().map(count).sum::<u64>() as f64 - before.iter().map(count).sum::<u64>() as f64
    };
    let transactions = grown(|stats| stats.rpcs.txn);
    (transactions > 0.0).then(|| grown(|stats| stats.acquired + stats.released) / transactions)
}
