//! A loop that processes jobs only while it holds the lock: `select!` over the jobs and over `done()`.

mod support;

use std::error::Error;
use std::thread;
use std::time::Duration;

use etcd_lock::crossbeam_channel::{Receiver, select, tick};
use etcd_lock::{ForceUnlock, LockGuard, LockManager, LockManagerOptions};

fn main() -> Result<(), Box<dyn Error>> {
    support::show_logs();
    let etcd = support::etcd();
    let manager = LockManager::connect(etcd.endpoints(), "/select-loss", LockManagerOptions::default())?;
    let jobs = tick(Duration::from_millis(200));

    // An administrator force-unlocks the lock after a second and a half.
    let admin = manager.clone();
    let admin = thread::spawn(move || {
        thread::sleep(Duration::from_millis(1500));
        println!("the administrator force-unlocks the lock");
        admin.force_unlock("consumer", ForceUnlock::Lock)
    });

    // A lost guard stays lost. To continue, acquire the lock again and start over.
    for term in 1..=2 {
        let guard = manager.new_lock("consumer")?.lock()?;
        println!("\nterm {term}: acquired the lock, token {}", guard.token());
        let done = consume(&guard, &jobs, 10);
        match guard.loss() {
            Some(why) => println!("term {term}: stopped after {done} jobs, because {why}"),
            None => println!("term {term}: all {done} jobs done"),
        }
    }

    admin.join().map_err(|_| "the administrator panicked")??;
    manager.close()?;
    Ok(())
}

/// Processes up to `limit` jobs, and stops as soon as the lock is lost. Returns how many it did.
fn consume<T>(guard: &LockGuard, jobs: &Receiver<T>, limit: usize) -> usize {
    for done in 0..limit {
        select! {
            recv(guard.done()) -> _ => return done,
            recv(jobs) -> _job => println!("   job {} under token {}", done + 1, guard.token()),
        }
    }
    limit
}
