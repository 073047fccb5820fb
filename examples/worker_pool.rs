//! A pool of worker threads: many jobs for few customers, and never two jobs of one customer at a time, in this process
//! or in any other one on the same etcd.

mod support;

use std::error::Error;
use std::thread;
use std::time::{Duration, Instant};

use etcd_lock::crossbeam_channel::{self, Receiver};
use etcd_lock::{LockError, LockManager, LockManagerOptions};

struct Job {
    number: u32,
    customer: &'static str,
}

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    // One manager for the whole program: all locks share its session. A clone is a handle of the same manager.
    let manager = LockManager::connect(etcd.endpoints(), "/worker-pool", LockManagerOptions::default())?;

    let (queue, jobs) = crossbeam_channel::unbounded();
    for number in 0..12 {
        let customer = ["anna", "ben", "carla"][number as usize % 3];
        queue.send(Job { number, customer })?;
    }
    drop(queue);

    let start = Instant::now();
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let (manager, jobs) = (manager.clone(), jobs.clone());
            thread::spawn(move || work(worker, &manager, &jobs, start))
        })
        .collect();
    for worker in workers {
        worker.join().map_err(|_| "a worker panicked")??;
    }

    // Twelve jobs of 100 ms for three customers: three at a time.
    println!("\n12 jobs in {:.0?}", start.elapsed());
    manager.close()?;
    Ok(())
}

fn work(worker: u32, manager: &LockManager, jobs: &Receiver<Job>, start: Instant) -> Result<(), LockError> {
    for Job { number, customer } in jobs {
        // The guard is dropped at the end of the block, also if the job panics or returns early.
        let guard = manager.new_lock(customer)?.lock()?;
        println!("{:>5.0?} worker {worker} begins job {number:2} for {customer}", start.elapsed());
        thread::sleep(Duration::from_millis(100));
        // Before the write: is enough time left for it? The token goes along, so that the receiver can refuse a write
        // that still comes too late.
        let token = guard.ensure(Duration::from_secs(1))?;
        println!("{:>5.0?} worker {worker} writes job {number:2} with token {token}", start.elapsed());
    }
    Ok(())
}
